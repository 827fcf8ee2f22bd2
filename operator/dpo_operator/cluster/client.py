"""Requests to the API server, JSON in and JSON out.

The generated models of the client library are passed by: building them for every pod of every list costs more than
all decisions together, and reconciling needs the plain objects.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from kubernetes.aio import config as kube_config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from dpo_operator.api import names

Json = dict[str, Any]
REQUEST_SECONDS = 30.0
PAGE = 500


class ApiError(Exception):
    """The API server's refusal. code: HTTP status. reason: Kubernetes' word for it, such as AlreadyExists."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message

    @property
    def is_gone(self) -> bool:
        """The object does not exist."""
        return self.code == 404

    @property
    def is_conflict(self) -> bool:
        """The object is not what the request expected, or exists already."""
        return self.code == 409

    @property
    def is_terminating(self) -> bool:
        """The namespace is being deleted: nothing can be made in it any more, and nothing has to be."""
        return self.code == 403 and "because it is being terminated" in self.message

    @property
    def is_refusal(self) -> bool:
        """The request itself was judged and refused: invalid, forbidden by a quota, a policy or a webhook."""
        return self.code in (400, 403, 422)


@dataclass(frozen=True)
class Resource:
    """Where objects of a kind are in the API."""

    prefix: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path; without a namespace it spans all of them."""
        parts = [self.prefix, f"namespaces/{namespace}" if namespace else None, self.plural, name, subresource]
        return "/" + "/".join(part for part in parts if part)


RESOURCES: dict[str, Resource] = {
    names.KIND: Resource(f"apis/{names.API_VERSION}", names.PLURAL),
    "Job": Resource("apis/batch/v1", "jobs"),
    "Pod": Resource("api/v1", "pods"),
    "Service": Resource("api/v1", "services"),
    "ConfigMap": Resource("api/v1", "configmaps"),
    "PersistentVolumeClaim": Resource("api/v1", "persistentvolumeclaims"),
    "Event": Resource("api/v1", "events"),
    "PodDisruptionBudget": Resource("apis/policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": Resource("apis/networking.k8s.io/v1", "networkpolicies"),
}


def resource_of(manifest: Json) -> Resource:
    """Where an object belongs. PodGroups of several projects share their kind."""
    if manifest["kind"] == "PodGroup":
        return Resource(f"apis/{manifest['apiVersion']}", "podgroups")
    return RESOURCES[manifest["kind"]]


class Client:
    """A connection to one API server. Close it, or use it as a context manager."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls) -> "Client":
        """Use $KUBECONFIG when it's set, else the pod's service account, else ~/.kube/config."""
        configuration = Configuration()
        default = Path.home() / ".kube" / "config"
        if path := os.environ.get("KUBECONFIG"):
            await kube_config.load_kube_config(config_file=path, client_configuration=configuration)  # type: ignore[no-untyped-call]
        elif "KUBERNETES_SERVICE_HOST" in os.environ:
            kube_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await kube_config.load_kube_config(config_file=str(default), client_configuration=configuration)  # type: ignore[no-untyped-call]
        api = ApiClient(configuration)
        # Shown as the manager of fields and in audit logs.
        api.user_agent = names.PART_OF
        return cls(api)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: str | Resource, namespace: str, name: str) -> Json | None:
        """One object, None when it does not exist. Read from the storage, never from a cache."""
        try:
            resource = RESOURCES[kind] if isinstance(kind, str) else kind
            return await self.request("GET", resource.path(namespace, name))
        except ApiError as error:
            if error.is_gone:
                return None
            raise

    async def list(self, kind: str, namespace: str | None, label_selector: str = "") -> list[Json]:
        """All objects of a kind, page by page. Read from the storage, never from a cache."""
        items: list[Json] = []
        token = ""
        while True:
            query = {"limit": str(PAGE), "labelSelector": label_selector, "continue": token}
            path = RESOURCES[kind].path(namespace)
            page = await self.request("GET", path, query={k: v for k, v in query.items() if v})
            items += page.get("items") or []
            token = page.get("metadata", {}).get("continue") or ""
            if not token:
                return items

    async def request(
        self, method: str, path: str, body: Json | None = None, query: dict[str, str] | None = None
    ) -> Json:
        """One request. Raises ApiError for an answer other than 2xx, and OSError or TimeoutError without an answer.

        A PATCH is a JSON merge patch.
        """
        content_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
        serialized = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await self._api.call_api(*serialized, _request_timeout=REQUEST_SECONDS)
        text = await answer.read()  # type: ignore[no-untyped-call]
        if 200 <= answer.status < 300:
            parsed: Json = json.loads(text)
            return parsed
        raise _refusal(answer.status, text)


def _refusal(code: int, text: bytes) -> ApiError:
    """From a metav1.Status, or from whatever a proxy in between says."""
    try:
        status = json.loads(text)
        return ApiError(code, str(status.get("reason") or "Unknown"), str(status.get("message") or ""))
    except (ValueError, AttributeError):
        return ApiError(code, "Unknown", text[:500].decode(errors="replace"))
