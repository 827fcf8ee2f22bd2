"""Rules about how pods are placed, queued and connected."""

import re
from collections.abc import Callable

from dpo_operator.api.pods import RESERVED_METADATA, RESERVED_METADATA_TEXT, SAFE_TO_EVICT, ResourceList, Topology
from dpo_operator.api.quantity import amount
from dpo_operator.api.queue import Queue
from dpo_operator.api.rules.rule import Rule
from dpo_operator.api.types import DPOJobSpec

HOSTNAME = "kubernetes.io/hostname"
SYSTEM = "system-"
EXTENDED = "^[^/]{1,244}/"
RESOURCE = f"^(cpu|memory|ephemeral-storage|hugepages-[0-9]+[KMG]i)$|{EXTENDED}"
NOT_DEVICES = "^requests[.]|kubernetes[.]io/"
# Kubernetes' own names, and GPUs, which the operator asks for.
NOT_THEIRS = f"{NOT_DEVICES}|/(gpu([.]shared)?$|mig-)|^(gpu[.]intel[.]com|habana[.]ai)/"
NOT_SHARED = "/|^hugepages-"
WHOLE = "^[0-9]+$"
# What pod.network.interface sets.
INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def _queue_fits(queue: Queue | None) -> bool:
    if queue is None:
        return True
    if queue.kind == "SchedulerPlugins":
        return queue.name is None and queue.priority_class is None
    if queue.kind == "KAI":
        return queue.name is not None and queue.priority_class is None
    return queue.kind == "Volcano" or queue.name is not None


def _queue_topology_fits(spec: DPOJobSpec) -> bool:
    if spec.queue is None or spec.queue.topology is None:
        return True
    topology = spec.queue.topology
    if spec.pod.topology is not None:
        return False
    if spec.queue.kind == "Kueue":
        return topology.pack_by is not None and topology.highest_tier is None
    tiers = (topology.highest_tier is not None) == topology.required
    return spec.queue.kind == "Volcano" and topology.pack_by is None and tiers


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
    return (
        bool(re.search(EXTENDED, resource))
        and not re.search(NOT_THEIRS, resource)
        and resource != spec.pod.gpu_resource
        and not taken
    )


def _all_known(wanted: ResourceList, gpu: str) -> bool:
    return all(
        re.search(RESOURCE, key) and not re.search(NOT_THEIRS, key) and key != gpu
        for key in (*wanted.requests, *wanted.limits)
    )


def _countable(wanted: ResourceList) -> bool:
    whole = all(re.search(WHOLE, value) for key, value in wanted.limits.items() if "/" in key)
    return whole and all(
        key in wanted.limits and amount(wanted.limits[key]) == amount(value)
        for key, value in wanted.requests.items()
        if re.search(NOT_SHARED, key)
    )


def _within_limits(wanted: ResourceList) -> bool:
    both = wanted.requests.keys() & wanted.limits.keys()
    return all(amount(wanted.requests[key]) <= amount(wanted.limits[key]) for key in both)


def _resource_rules(field: str, read: Callable[[DPOJobSpec], ResourceList]) -> tuple[Rule, ...]:
    """What Kubernetes would refuse of a pod only when the Job makes it, which may be hours later; and GPUs."""
    requests, limits = f"self.{field}.requests", f"self.{field}.limits"
    known = f"k.matches('{RESOURCE}') && !k.matches('{NOT_THEIRS}') && k != self.pod.gpuResource"
    compared = f"quantity(string({limits}[k])).compareTo(quantity(string({requests}[k])))"
    return (
        Rule(
            field,
            f"{requests}.all(k, {known}) && {limits}.all(k, {known})",
            lambda s: _all_known(read(s), s.pod.gpu_resource),
            "may name cpu, memory, ephemeral-storage, hugepages-2Mi and extended resources such as example.org/nic; GPUs come from gpusPerNode",
        ),
        Rule(
            field,
            f"{limits}.all(k, !k.contains('/') || string({limits}[k]).matches('{WHOLE}')) && "
            f"{requests}.all(k, !k.matches('{NOT_SHARED}') || (k in {limits} && {compared} == 0))",
            lambda s: _countable(read(s)),
            "extended resources and huge pages can't be shared: limits must name them, in whole numbers, and requests the same or nothing",
        ),
        Rule(
            field,
            f"{requests}.all(k, !(k in {limits}) || {compared} >= 0)",
            lambda s: _within_limits(read(s)),
            "requests must not be above limits",
        ),
    )


def _metadata_rule(field: str, read: Callable[[DPOJobSpec], dict[str, str]]) -> Rule:
    """Keys that decide what a pod is, and not how a cluster treats it, are not for jobs."""
    return Rule(
        field,
        f"self.{field}.all(k, k == '{SAFE_TO_EVICT}' || !k.matches('{RESERVED_METADATA}'))",
        lambda s: all(key == SAFE_TO_EVICT or not re.search(RESERVED_METADATA, key) for key in read(s)),
        f"must not set what belongs to Kubernetes, to this operator or to a queue: {RESERVED_METADATA_TEXT}",
    )


def _user_priority(spec: DPOJobSpec) -> bool:
    names = (spec.pod.priority_class_name, spec.queue.priority_class if spec.queue is not None else None)
    return not any(name is not None and name.startswith(SYSTEM) for name in names)


def _interface_fits(spec: DPOJobSpec) -> bool:
    return spec.pod.network.interface is None or not any(e.name in INTERFACE_VARIABLES for e in spec.pod.env)


def _keeps_its_token(spec: DPOJobSpec) -> bool:
    """Whether no server that the job names is shown the token of pod.serviceAccountName.

    An endpoint for s3:// is shown a signature alone, and a hub nothing.
    """
    way = spec.way_out
    shown = (way.gs.endpoint, way.azure.endpoint, way.proxy, way.ca_bundle_ref)
    return spec.pod.service_account_name is None or not any(shown)


_RDMA = "self.pod.network.rdmaResource"
_INTERFACES = " || ".join(f"e.name == '{name}'" for name in INTERFACE_VARIABLES)

POD_RULES: tuple[Rule, ...] = (
    Rule(
        "pod.serviceAccountName",
        "!has(self.pod.serviceAccountName) || !has(self.access) || !(has(self.access.gs.endpoint) || has(self.access.azure.endpoint) || "
        "has(self.access.proxy) || has(self.access.caBundleRef))",
        _keeps_its_token,
        "excludes access.gs.endpoint, access.azure.endpoint, access.proxy and access.caBundleRef: a server that the job names would be shown the "
        "account's token; leave them out, or take keys of access.credentialsSecretRef instead of the account",
    ),
    Rule(
        "queue",
        "!has(self.queue) || (self.queue.kind == 'SchedulerPlugins' ? !has(self.queue.name) && !has(self.queue.priorityClass) : "
        "self.queue.kind == 'KAI' ? has(self.queue.name) && !has(self.queue.priorityClass) : "
        "self.queue.kind == 'Volcano' || has(self.queue.name))",
        lambda s: _queue_fits(s.queue),
        "Kueue and KAI need name, the queue; SchedulerPlugins has neither queues nor priorities of its own, so name and priorityClass must be "
        "left out; KAI takes the priority of pod.priorityClassName, so priorityClass must be left out",
    ),
    Rule(
        "queue.topology",
        "!has(self.queue) || !has(self.queue.topology) || (!has(self.pod.topology) && (self.queue.kind == 'Kueue' ? "
        "has(self.queue.topology.packBy) && !has(self.queue.topology.highestTier) : self.queue.kind == 'Volcano' && "
        "!has(self.queue.topology.packBy) && has(self.queue.topology.highestTier) == self.queue.topology.required))",
        _queue_topology_fits,
        "with Kueue it needs packBy alone, with Volcano highestTier exactly when required is true; other kinds have none, and pod.topology excludes "
        "it, because one of the two places the ranks",
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
        "pod.gpuResource",
        f"self.pod.gpuResource.matches('{EXTENDED}') && !self.pod.gpuResource.matches('{NOT_DEVICES}')",
        lambda s: bool(re.search(EXTENDED, s.pod.gpu_resource)) and not re.search(NOT_DEVICES, s.pod.gpu_resource),
        "must be an extended resource such as amd.com/gpu",
    ),
    Rule(
        "pod.network.rdmaResource",
        f"!has({_RDMA}) || ({_RDMA}.matches('{EXTENDED}') && !{_RDMA}.matches('{NOT_THEIRS}') && {_RDMA} != self.pod.gpuResource && "
        f"!({_RDMA} in self.pod.resources.requests) && !({_RDMA} in self.pod.resources.limits))",
        _rdma_fits,
        "must be an extended resource such as rdma/ib, other than GPUs, that pod.resources does not name too",
    ),
    *_resource_rules("pod.resources", lambda s: s.pod.resources),
    *_resource_rules("pod.prepareResources", lambda s: s.pod.prepare_resources),
    _metadata_rule("pod.annotations", lambda s: s.pod.annotations),
    _metadata_rule("pod.labels", lambda s: s.pod.labels),
    Rule(
        "pod.priorityClassName",
        f"!(has(self.pod.priorityClassName) && self.pod.priorityClassName.startsWith('{SYSTEM}')) && "
        f"!(has(self.queue) && has(self.queue.priorityClass) && self.queue.priorityClass.startsWith('{SYSTEM}'))",
        _user_priority,
        f"neither it nor queue.priorityClass may begin with {SYSTEM}: those classes are the cluster's own",
    ),
    Rule(
        "pod.network.interface",
        f"!has(self.pod.network.interface) || !self.pod.env.exists(e, {_INTERFACES})",
        _interface_fits,
        f"excludes {' and '.join(INTERFACE_VARIABLES)} in pod.env, which it sets",
    ),
)
