"""Which addresses a cluster has. Derived from its number, so that clusters on one machine never meet.

172.30.<number>.0/24    the wire between control plane and nodes
172.31.<number>.0/30    the link to the machine itself, for kubectl; nodes and pods have no route to it
10.<100+number>.0.0/16  pods, one /24 for each node
10.96.0.0/16            services; they exist only inside the cluster's own namespaces
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SERVICE_SUBNET = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
MAX_CLUSTERS = 100
MAX_NODES = 200


@dataclass(frozen=True)
class Addresses:
    """The addresses of the cluster with this number."""

    number: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < MAX_CLUSTERS:
            raise ValueError(f"cluster number {self.number} is not between 0 and {MAX_CLUSTERS - 1}")

    @property
    def control_plane(self) -> str:
        return f"172.30.{self.number}.10"

    @property
    def host_side(self) -> str:
        return f"172.31.{self.number}.1"

    @property
    def control_plane_host_side(self) -> str:
        return f"172.31.{self.number}.2"

    @property
    def pod_subnet(self) -> str:
        return f"10.{100 + self.number}.0.0/16"

    @property
    def host_interface(self) -> str:
        return f"dporig{self.number}"

    def node(self, ordinal: int) -> str:
        """The address of node n<ordinal>; the first node is n1."""
        if not 1 <= ordinal <= MAX_NODES:
            raise ValueError(f"node number {ordinal} is not between 1 and {MAX_NODES}")
        return f"172.30.{self.number}.{10 + ordinal}"

    def node_pods(self, ordinal: int) -> str:
        """The subnet of the pods on node n<ordinal>."""
        return f"10.{100 + self.number}.{ordinal}.0/24"


def lowest_free(taken: Iterable[int]) -> int:
    """The number for a new cluster."""
    used = set(taken)
    return next(number for number in range(MAX_CLUSTERS + 1) if number not in used)
