"""Rules about how pods are placed, queued and connected."""

from dpo_operator.api.pods import Topology
from dpo_operator.api.queue import Queue
from dpo_operator.api.rule import Rule
from dpo_operator.api.types import DPOJobSpec

HOSTNAME = "kubernetes.io/hostname"
# What pod.network.interface sets.
INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def _queue_fits(queue: Queue | None) -> bool:
    if queue is None:
        return True
    if queue.kind == "SchedulerPlugins":
        return queue.name is None and queue.priority_class is None
    return queue.kind == "Volcano" or queue.name is not None


def _topology_fits(topology: Topology | None) -> bool:
    if topology is None:
        return True
    pack, spread = topology.pack_by, topology.spread_by
    return (pack is not None or spread is not None) and pack != spread and pack != HOSTNAME


def _rdma_fits(spec: DPOJobSpec) -> bool:
    resource, own = spec.pod.network.rdma_resource, spec.pod.resources
    if resource is None:
        return True
    taken = resource in own.requests or resource in own.limits
    return "/" in resource and resource != "nvidia.com/gpu" and not taken


def _interface_fits(spec: DPOJobSpec) -> bool:
    return spec.pod.network.interface is None or not any(e.name in INTERFACE_VARIABLES for e in spec.pod.env)


_RDMA = "self.pod.network.rdmaResource"
_INTERFACES = " || ".join(f"e.name == '{name}'" for name in INTERFACE_VARIABLES)

POD_RULES: tuple[Rule, ...] = (
    Rule(
        "queue",
        "!has(self.queue) || (self.queue.kind == 'SchedulerPlugins' ? !has(self.queue.name) && !has(self.queue.priorityClass) : "
        "self.queue.kind == 'Volcano' || has(self.queue.name))",
        lambda s: _queue_fits(s.queue),
        "Kueue needs name, the LocalQueue; SchedulerPlugins has neither queues nor priorities of its own, so name and priorityClass must be "
        "left out",
    ),
    Rule(
        "pod.topology",
        "!has(self.pod.topology) || ((has(self.pod.topology.packBy) || has(self.pod.topology.spreadBy)) && "
        "!(has(self.pod.topology.packBy) && has(self.pod.topology.spreadBy) && self.pod.topology.packBy == self.pod.topology.spreadBy) && "
        f"!(has(self.pod.topology.packBy) && self.pod.topology.packBy == '{HOSTNAME}'))",
        lambda s: _topology_fits(s.pod.topology),
        f"needs packBy or spreadBy, not both with the same label, and packBy can't be {HOSTNAME}: each rank's pod has a node to itself",
    ),
    Rule(
        "pod.network.rdmaResource",
        f"!has({_RDMA}) || ({_RDMA}.contains('/') && {_RDMA} != 'nvidia.com/gpu' && "
        f"!({_RDMA} in self.pod.resources.requests) && !({_RDMA} in self.pod.resources.limits))",
        _rdma_fits,
        "must be an extended resource such as rdma/ib, other than nvidia.com/gpu, that pod.resources does not name too",
    ),
    Rule(
        "pod.network.interface",
        f"!has(self.pod.network.interface) || !self.pod.env.exists(e, {_INTERFACES})",
        _interface_fits,
        f"excludes {' and '.join(INTERFACE_VARIABLES)} in pod.env, which it sets",
    ),
)
