"""A real OCI registry (CNCF distribution) on the loopback interface, with a user and a password; tests put the proxy of tests/s3.py before it."""

import base64
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests import tied
from tests.cluster.rig.binaries import binary
from tests.ports import free_port

USER = "pusher"
# Searched for in everything that a job leaves.
PASSWORD = "canary-registry-7be0d3c25f/never+shown"
# The same by bcrypt, the only kind that the registry takes.
_HASHED = "$2b$04$Vswd6WpVJb8XJ9.I.hPT0O20HZII1w0P61eav3.fjaELegYfcvkwG"


@dataclass(frozen=True)
class Registry:
    """The registry. folder: where its blobs are."""

    port: int
    folder: Path
    client: httpx.Client = field(repr=False)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def get(self, path: str, **headers: str) -> httpx.Response:
        """What is at a path below /v2/, as its user sees it."""
        return self.client.get(f"http://{self.host}/v2/{path}", headers=headers)

    def manifest(self, repository: str, reference: str) -> dict[str, Any] | None:
        types = ("index", "manifest")
        accept = ", ".join(f"application/vnd.oci.image.{kind}.v1+json" for kind in types)
        answer = self.get(f"{repository}/manifests/{reference}", Accept=accept)
        return dict(answer.json()) if answer.status_code == 200 else None

    def blob(self, repository: str, digest: str) -> bytes:
        answer = self.get(f"{repository}/blobs/{digest}")
        assert answer.status_code == 200, answer.text
        return answer.content


def config_file(path: Path, host: str, password: str = PASSWORD) -> Path:
    """What `docker login` writes."""
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return path


@contextmanager
def serving(folder: Path) -> Iterator[Registry]:
    """A registry with its blobs in a folder."""
    port = free_port()
    users = folder / "htpasswd"
    users.write_text(f"{USER}:{_HASHED}\n")
    settings = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "blobs")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "same-for-all-uploads"},
        "auth": {"htpasswd": {"realm": "tests", "path": str(users)}},
    }
    (folder / "config.yml").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = tied.popen([binary("registry"), "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        with httpx.Client(auth=(USER, PASSWORD)) as client:
            yield Registry(port, folder / "blobs", client)
    finally:
        process.terminate()
        process.wait()
