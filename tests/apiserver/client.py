"""Requests to the API server over one connection: hundreds of dry runs in a few seconds."""

import http.client
import json
import ssl
import time
from dataclasses import dataclass
from typing import Any

from dpo_operator.api import names
from tests.cluster.rig.control_plane import ControlPlane
from tests.cluster.rig.shell import wait_for

# The server ends a connection on which nothing was asked for 90 s.
IDLE_SECONDS = 30.0
JOBS = f"/apis/{names.API_VERSION}/namespaces/default/{names.PLURAL}"


def wait_until_served(plane: ControlPlane, name: str) -> None:
    """Until a CRD is served. kubectl's own wait fails at once when the CRD has no condition at all yet."""
    words = ("wait", "--for=condition=Established", f"crd/{name}", "--timeout=10s")
    wait_for(f"{name} to be served", lambda: plane.kubectl(*words), timeout=60)


@dataclass(frozen=True)
class Answer:
    """status: of HTTP. body: the object, or a metav1.Status that says why not."""

    status: int
    body: dict[str, Any]

    @property
    def accepted(self) -> bool:
        return self.status < 300

    @property
    def message(self) -> str:
        """What the server found wrong."""
        return str(self.body.get("message", ""))


class Requests:
    """A client with the administrator's certificate. user: whom it acts as instead, with that user's rights."""

    def __init__(self, plane: ControlPlane, user: str = "") -> None:
        self._headers = {"Accept": "application/json"} | ({"Impersonate-User": user} if user else {})
        pki = plane.authority
        context = ssl.create_default_context(cafile=str(pki.own.certificate))
        admin = pki.pair("admin")
        context.load_cert_chain(admin.certificate, admin.key)
        self._connection = http.client.HTTPSConnection(
            plane.endpoints.address, plane.endpoints.apiserver, context=context, timeout=30
        )
        self._used_at = time.monotonic()

    def send(self, method: str, path: str, body: Any = None, *, content_type: str = "application/json") -> Answer:
        """One request; the answer's body must be JSON."""
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        if time.monotonic() - self._used_at > IDLE_SECONDS:
            self._connection.close()
        self._used_at = time.monotonic()
        try:
            self._connection.request(method, path, data, self._headers | {"Content-Type": content_type})
            response = self._connection.getresponse()
            return Answer(response.status, json.loads(response.read()))
        except BaseException:
            # What comes next must not find half a request on the connection: closed, it is opened anew.
            self._connection.close()
            raise

    def dry_run(self, job: dict[str, Any]) -> Answer:
        """Create a DPOJob without storing it, as strictly as kubectl asks for by default."""
        return self.send("POST", f"{JOBS}?dryRun=All&fieldValidation=Strict", job)

    def create(self, job: dict[str, Any]) -> Answer:
        return self.send("POST", f"{JOBS}?fieldValidation=Strict", job)

    def merge(self, name: str, patch: dict[str, Any], *, subresource: str = "") -> Answer:
        """A JSON merge patch of a stored DPOJob."""
        path = f"{JOBS}/{name}{subresource}?fieldValidation=Strict"
        return self.send("PATCH", path, patch, content_type="application/merge-patch+json")

    def delete(self, name: str) -> Answer:
        return self.send("DELETE", f"{JOBS}/{name}")
