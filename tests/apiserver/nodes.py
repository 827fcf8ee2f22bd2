"""Nodes without machines: real Node objects for the real scheduler, and a thread that does to pods what kubelets would.

A pod that is scheduled runs at once. Training pods run until all of their gang have run for a while, others end at once;
a pod that is deleted saves, exits with 143 and is gone.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from dpo_operator.api import names
from tests.apiserver.client import Requests
from tests.apiserver.hands import Hands, last_words, wait_until
from tests.cluster.rig.control_plane import ControlPlane

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
RENEW_SECONDS = 4.0


def now(*, micro: bool = False) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + (".000000Z" if micro else "Z")


@dataclass
class Kubelets:
    """All kubelets of a cluster, for one namespace. hands: the test's; own: those of the thread, on another connection.

    work_seconds: how long a whole gang trains. train: whether its pods ever end by themselves. save_seconds: between a
    pod's deletion and its end.
    """

    hands: Hands
    own: Hands
    work_seconds: float = 2.0
    train: bool = True
    save_seconds: float = 0.5
    _nodes: set[str] = field(default_factory=set)
    _since: dict[tuple[str, str], float] = field(default_factory=dict)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, *, gpus: int = 1, labels: dict[str, str] | None = None) -> None:
        """A node that is ready."""
        resources = {"cpu": "8", "memory": "64Gi", "pods": "50", "nvidia.com/gpu": str(gpus)}
        metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        answer = self.hands.requests.send("POST", "/api/v1/nodes", node)
        assert answer.accepted, answer.message
        condition = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}
        condition |= {"lastHeartbeatTime": now(), "lastTransitionTime": now()}
        status = {"capacity": resources, "allocatable": resources, "conditions": [condition]}
        merge = "application/merge-patch+json"
        answer = self.hands.requests.send(
            "PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, content_type=merge
        )
        assert answer.accepted, answer.message
        self._nodes.add(name)
        # A new node is tainted until a controller has seen that it's ready.
        wait_until(f"{name} to take pods", lambda: not self._taints(name))

    def _taints(self, name: str) -> list[dict[str, Any]]:
        return list(self.hands.requests.send("GET", f"/api/v1/nodes/{name}").body["spec"].get("taints") or [])

    def remove(self, name: str) -> None:
        """The machine is taken out of the cluster."""
        self._nodes.discard(name)
        self.hands.requests.send("DELETE", f"/api/v1/nodes/{name}")

    def run(self) -> None:
        """Until stopped: renew the nodes' leases and look after their pods."""
        renewed = 0.0
        while not self._stopped.wait(0.1):
            if time.monotonic() - renewed >= RENEW_SECONDS:
                for name in tuple(self._nodes):
                    self._renew(name)
                renewed = time.monotonic()
            self._look_after_pods()

    def _renew(self, name: str) -> None:
        spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now(micro=True)}
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": spec}
        if not self.own.requests.send("POST", LEASES, lease).accepted:
            merge = "application/merge-patch+json"
            self.own.requests.send("PATCH", f"{LEASES}/{name}", {"spec": spec}, content_type=merge)

    def _look_after_pods(self) -> None:
        pods = self.own.requests.send("GET", self.own.path("pods")).body["items"]
        on_nodes = [p for p in pods if p["spec"].get("nodeName") in self._nodes]
        for pod in on_nodes:
            self._look_after(pod, on_nodes)

    def _look_after(self, pod: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        metadata, phase = pod["metadata"], pod["status"].get("phase")
        labels = metadata["labels"]
        said = labels[names.LABEL_PHASE], int(labels[names.LABEL_ATTEMPT])
        if "deletionTimestamp" in metadata:
            if self._seconds(metadata["uid"], "deleted") >= self.save_seconds:
                if phase in ("Pending", "Running"):
                    self.own.end(pod, 143, last_words(143, *said))
                self.own.delete("pods", metadata["name"], gracePeriodSeconds=0)
        elif phase == "Pending":
            self.own.start(pod, "")
        elif phase == "Running" and self._is_done(pod, pods):
            self.own.end(pod, 0, last_words(0, *said, export_path="export"))

    def _is_done(self, pod: dict[str, Any], pods: list[dict[str, Any]]) -> bool:
        labels = pod["metadata"]["labels"]
        if labels[names.LABEL_PHASE] != "train":
            return True
        job = labels["batch.kubernetes.io/job-name"]
        gang = [p for p in pods if p["metadata"]["labels"]["batch.kubernetes.io/job-name"] == job]
        found = self.own.get("jobs", job)
        started = sum(1 for p in gang if p["status"].get("phase") in ("Running", "Succeeded"))
        whole = found is not None and started == found["spec"]["completions"]
        return self.train and whole and self._seconds(job, "whole") >= self.work_seconds

    def _seconds(self, what: str, fact: str) -> float:
        """Time since a fact was first asked for."""
        return time.monotonic() - self._since.setdefault((what, fact), time.monotonic())


@contextmanager
def kubelets(
    plane: ControlPlane, hands: Hands, *, train: bool = True, beside: Kubelets | None = None
) -> Iterator[Kubelets]:
    """The thread, and the nodes gone afterwards. Fails when it broke off.

    beside: those of another namespace, on whose nodes this one's pods run too.
    """
    made = Kubelets(hands, replace(hands, requests=Requests(plane)), train=train)
    if beside is not None:
        made._nodes = beside._nodes
    thread = threading.Thread(target=made.run, name="kubelets")
    thread.start()
    try:
        yield made
        assert thread.is_alive()
    finally:
        made._stopped.set()
        thread.join(timeout=30)
        for name in tuple(made._nodes):
            made.remove(name)


def volumes(plane: ControlPlane, count: int) -> None:
    """Volumes that claims of any size are bound to; nothing is ever mounted."""
    spec = {
        "capacity": {"storage": "1Ti"},
        "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": "/none"},
    }
    kind = {"apiVersion": "v1", "kind": "PersistentVolume"}
    plane.apply(*(kind | {"metadata": {"name": f"v-{i}"}, "spec": spec} for i in range(count)))
