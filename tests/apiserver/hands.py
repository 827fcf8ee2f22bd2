"""What a node's kubelet would do to pods, done by the test: there are no nodes in this tier."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from dpo_operator.api import names
from tests.apiserver.client import Requests
from tests.apiserver.mutants import a_job
from tests.cluster.rig.control_plane import ControlPlane

T = TypeVar("T")
NAMESPACE = "operator-tests"


def wait_until(what: str, look: Callable[[], T], seconds: float = 30.0) -> T:
    """The first true answer. Raises AssertionError with the last one when there is none in time."""
    end = time.monotonic() + seconds
    while not (answer := look()):
        assert time.monotonic() < end, f"no {what} within {seconds} s; last: {answer!r}"
        time.sleep(0.05)
    return answer


def last_words(code: int, phase: str, attempt: int, **more: Any) -> str:
    """A termination message."""
    outcome = "Succeeded" if code == 0 else "Failed"
    return json.dumps({"phase": phase, "attempt": attempt, "outcome": outcome, "exit_code": code, **more})


@dataclass(frozen=True)
class Hands:
    """Acts on one namespace through the API server."""

    requests: Requests
    namespace: str = NAMESPACE

    def path(self, kind: str, name: str = "") -> str:
        """URL path of objects of a plural."""
        prefixes = {
            "jobs": "apis/batch/v1",
            "dpojobs": f"apis/{names.API_VERSION}",
            "poddisruptionbudgets": "apis/policy/v1",
            "networkpolicies": "apis/networking.k8s.io/v1",
        }
        prefix = prefixes.get(kind, "api/v1")
        return f"/{prefix}/namespaces/{self.namespace}/{kind}" + (f"/{name}" if name else "")

    def apply(self, name: str, **spec: Any) -> dict[str, Any]:
        """Create a DPOJob of two CPU nodes."""
        least = {"nodes": 2, "gpusPerNode": 0, "training": {"globalBatchSize": 2}}
        job = a_job(name, **(least | spec))
        job["metadata"]["namespace"] = self.namespace
        answer = self.requests.send("POST", self.path("dpojobs"), job)
        assert answer.accepted, answer.message
        return answer.body

    def patch(self, kind: str, name: str, body: dict[str, Any]) -> None:
        """JSON merge patch. name may end in a subresource."""
        answer = self.requests.send("PATCH", self.path(kind, name), body, content_type="application/merge-patch+json")
        assert answer.accepted, answer.message

    def delete(self, kind: str, name: str, **options: Any) -> None:
        """Delete an object, in the background unless asked otherwise."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"} | options
        self.requests.send("DELETE", self.path(kind, name), body)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """One object, None when it does not exist."""
        answer = self.requests.send("GET", self.path(kind, name))
        return answer.body if answer.accepted else None

    def children(self, kind: str, job: str) -> list[dict[str, Any]]:
        """A DPOJob's children of a kind."""
        path = f"{self.path(kind)}?labelSelector={names.LABEL_JOB}={job}"
        found: list[dict[str, Any]] = self.requests.send("GET", path).body["items"]
        return sorted(found, key=lambda item: str(item["metadata"]["name"]))

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Every object of a kind."""
        found: list[dict[str, Any]] = self.requests.send("GET", self.path(kind)).body["items"]
        return found

    def status(self, job: str) -> dict[str, Any]:
        """Status of a DPOJob."""
        found = self.get("dpojobs", job)
        return (found or {}).get("status") or {}

    def condition(self, job: str, type_: str) -> tuple[str, str]:
        """Status and reason of a condition, empty when it's not there."""
        found = [c for c in self.status(job).get("conditions", ()) if c["type"] == type_]
        return (found[0]["status"], found[0]["reason"]) if found else ("", "")

    def events(self, job: str) -> list[str]:
        """Reasons of a DPOJob's events, oldest first."""
        path = f"{self.path('events')}?fieldSelector=involvedObject.name={job},involvedObject.kind={names.KIND}"
        items = self.requests.send("GET", path).body["items"]
        return [e["reason"] for e in sorted(items, key=lambda e: int(e["metadata"]["resourceVersion"]))]

    def pods(self, job: str, phase: str, attempt: int, count: int) -> list[dict[str, Any]]:
        """Pods of an attempt by rank, as soon as all of them exist."""

        def look() -> list[dict[str, Any]]:
            wanted = {names.LABEL_PHASE: phase, names.LABEL_ATTEMPT: str(attempt)}.items()
            pods = [p for p in self.children("pods", job) if wanted <= p["metadata"]["labels"].items()]
            return pods if len(pods) == count else []

        pods = wait_until(f"{count} pods of {job} {phase} {attempt}", look)
        return sorted(pods, key=lambda p: int(p["metadata"]["labels"][names.COMPLETION_INDEX]))

    def start(self, pod: dict[str, Any], ip: str = "192.0.2.1") -> None:
        """The container runs."""
        self._report(pod, "Running", {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, ip, ready=True)

    def end(self, pod: dict[str, Any], code: int, text: str = "", reason: str = "") -> None:
        """The container ended."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        terminated = {"exitCode": code, "message": text, "finishedAt": now, "startedAt": now}
        terminated |= {"reason": reason or ("Completed" if code == 0 else "Error")}
        self._report(pod, "Failed" if code else "Succeeded", {"terminated": terminated}, None, ready=False)

    def _report(self, pod: dict[str, Any], phase: str, state: dict[str, Any], ip: str | None, *, ready: bool) -> None:
        container = {"name": "trainer", "image": "t", "imageID": "", "ready": ready, "restartCount": 0, "state": state}
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": now}
        status: dict[str, Any] = {"phase": phase, "containerStatuses": [container], "conditions": [condition]}
        if ip:
            status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
        self.patch("pods", f"{pod['metadata']['name']}/status", {"status": status})

    def run_phase(self, job: str, phase: str, attempt: int = 1, **said: Any) -> None:
        """Start all pods of an attempt, and end them with success."""
        pods = self.pods(job, phase, attempt, 2 if phase in ("generate", "train") else 1)
        for pod in pods:
            self.start(pod)
        wait_until(f"{job} to run", lambda: self.condition(job, "Running")[0] == "True")
        for pod in pods:
            self.end(pod, 0, last_words(0, phase, attempt, **said))

    def run_all(self, job: str, *, train: int = 1) -> None:
        """The rest of a job's life without a fault. train: its current attempt at training."""
        self.run_phase(job, "train", train)
        self.run_phase(job, "export", export_path="export")
        wait_until(f"end of {job}", lambda: self.status(job).get("state") == "Complete")


def make_storage_class(plane: ControlPlane, name: str, *, grows: bool) -> None:
    """A StorageClass whose claims nobody provides but `bind`."""
    kind = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name}}
    plane.apply(kind | {"provisioner": "example.org/nobody", "allowVolumeExpansion": grows})


def bind(plane: ControlPlane, hands: Hands, claim: str, *, size: str, kind: str) -> None:
    """What a provisioner does: a volume for the claim."""
    found = wait_until(f"claim {claim}", lambda: hands.get("persistentvolumeclaims", claim))
    spec = {
        "capacity": {"storage": size}, "accessModes": found["spec"]["accessModes"], "storageClassName": kind,
        "claimRef": {"namespace": hands.namespace, "name": claim, "uid": found["metadata"]["uid"]},
        "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": f"/nonexistent/{claim}"},
    }  # fmt: skip
    plane.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": claim}, "spec": spec})
    wait_until("bound claim", lambda: hands.get("persistentvolumeclaims", claim)["status"]["phase"] == "Bound")
