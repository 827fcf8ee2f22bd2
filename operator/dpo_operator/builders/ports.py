"""Ports of trainer pods. With hostNetwork, the ports of two jobs must differ."""

import hashlib
from typing import Any, NamedTuple

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob

# Below the ports of NodePort Services (30000 and up) and those that Linux gives to outgoing connections (32768 and up),
# and above those that daemons of nodes usually have.
FIRST_HOST_PORT = 20000
HOST_PORT_PAIRS = 4500


class Ports(NamedTuple):
    """The rendezvous port of rank 0, and the port of progress and metrics."""

    master: int
    metrics: int


def ports_of(job: DPOJob, phase: names.PodKind = "train") -> Ports:
    """Ports of a phase's pods. With hostNetwork each job has a pair of its own, made from its UID.

    Two jobs may still get the same pair. Kubernetes puts no two pods with the same port of the host on one node, so this
    costs a choice of nodes, not a run.
    """
    if phase != "train" or not job.spec.pod.network.host_network:
        return Ports(names.MASTER_PORT, names.METRICS_PORT)
    digest = hashlib.sha256(job.metadata.uid.encode()).digest()
    first = FIRST_HOST_PORT + 2 * (int.from_bytes(digest[:4]) % HOST_PORT_PAIRS)
    return Ports(first, first + 1)


def container_ports(job: DPOJob, phase: names.PodKind) -> list[dict[str, Any]]:
    """Ports as a container names them. Those of the host are all named, so that the scheduler keeps them apart."""
    if phase == "mirror":
        return []  # it serves nothing
    ports = ports_of(job, phase)
    named = [{"name": names.METRICS_PORT_NAME, "containerPort": ports.metrics, "protocol": "TCP"}]
    if phase == "train" and job.spec.pod.network.host_network:
        named.append({"name": "master", "containerPort": ports.master, "protocol": "TCP"})
    return named
