"""Guards of a job's pods: a PodDisruptionBudget, NetworkPolicies, and the PodGroup of its queue.

Unlike the Service and the ConfigMap, these follow the settings that they were made from, and a hand that changed them.
"""

from collections.abc import Callable
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.access import url_port
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.access import has_identity, pushes
from dpo_operator.builders.common import Manifest, build_metadata, rank_labels
from dpo_operator.builders.networks import CLOSED, NAMESPACE_NAME, Networks
from dpo_operator.builders.ports import ports_of
from dpo_operator.builders.queue import build_pod_group
from dpo_operator.builders.shape import SIZED, endpoint_of

# Private ranges where DNS servers may be: Service IPs, node-local caches (link-local), nodes. Metadata endpoints are also
# link-local, but on another port.
DNS_RANGES = (
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"),
    *("fc00::/7", "fe80::/10"),
)
# 5353: where OpenShift's servers listen. Policies see the pod's port, not the Service's.
DNS_PORTS = (53, 5353)


def build_guards(job: DPOJob, phase: names.Phase, networks: Networks = CLOSED) -> tuple[Manifest, ...]:
    """Guards of a phase's pods. networks: the administrator's choices."""
    guards = [build_budget(job)] if phase in SIZED else []
    if phase != "export":
        # Already in prepare, so that a missing queue CRD is reported before the download.
        guards.append(build_pod_group(job))
    if job.spec.pod.network.isolate or not networks.unisolated:
        guards.append(_POLICIES[phase](job, networks))
        if phase == "export" and pushes(job):
            guards.append(build_push_policy(job, networks))
        if phase != "prepare" and job.spec.checkpoint.mirror is not None:
            guards.append(build_mirror_policy(job, networks))
    return tuple(guard for guard in guards if guard is not None)


def build_budget(job: DPOJob) -> Manifest | None:
    """PodDisruptionBudget: one rank, or one pod that generates, at a time can be evicted, or none. None if a single pod may be evicted.

    minAvailable is a number, since pods of a Job have no scale that a share could be of. A pod that is not ready yet holds
    no state, and delays no drain.
    """
    refuses = job.spec.pod.evictions == "Refuse"
    least = job.spec.nodes - (0 if refuses else 1)
    return _budget(job, least) if least > 0 else None


def build_open_budget(job: DPOJob) -> Manifest:
    """Permissive PodDisruptionBudget, which replaces the one of a larger size that a single pod does not need."""
    return _budget(job, 0)


def _budget(job: DPOJob, least: int) -> Manifest:
    refuses = job.spec.pod.evictions == "Refuse"
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": build_metadata(job, names.budget_name(job.metadata.name), phase="train"),
        "spec": {
            "minAvailable": least,
            "selector": {"matchLabels": rank_labels(job)} if job.spec.iterative is None else _of_phases(job, *SIZED),
            "unhealthyPodEvictionPolicy": "IfHealthyBudget" if refuses else "AlwaysAllow",
        },
    }


def build_rank_policy(job: DPOJob, networks: Networks) -> Manifest:
    """Ranks reach one another, DNS and, with wandb online, HTTPS servers. So does the export pod, which uses only DNS."""
    own = [{"podSelector": {"matchLabels": rank_labels(job)}}]
    wandb = job.spec.tracking.wandb
    online = (
        [{"to": networks.outside(), "ports": [{"protocol": "TCP", "port": 443}]}]
        if wandb is not None and wandb.mode == "online"
        else []
    )
    return _policy(
        job,
        names.policy_name(job.metadata.name, "train"),
        _of_phases(job, "train", "export"),
        ingress=[{"from": own}, _metrics(job, "train", networks.metrics_namespaces)],
        egress=[{"to": own}, _dns(), *online],
    )


def build_prepare_policy(job: DPOJob, networks: Networks) -> Manifest:
    """Downloads come from the internet, and from what the administrator opened."""
    selected = _of_phase(job, "prepare")
    ingress = [_metrics(job, "prepare", networks.metrics_namespaces)]
    egress = [{"to": networks.outside()}, _dns(), *_identity(job, "prepare", networks)]
    return _policy(job, names.policy_name(job.metadata.name, "prepare"), selected, ingress=ingress, egress=egress)


def build_generate_policy(job: DPOJob, networks: Networks) -> Manifest:
    """Pods that generate reach nothing, not even one another: what they need is on the volume."""
    ingress = [_metrics(job, "generate", networks.metrics_namespaces)]
    name = names.policy_name(job.metadata.name, "generate")
    return _policy(job, name, _of_phase(job, "generate"), ingress=ingress, egress=[])


def build_judge_policy(job: DPOJob, networks: Networks) -> Manifest:
    """A judge reaches the pods that allowTo names, or else its endpoint's port on the internet and in what the administrator opened.

    A judge without an endpoint reaches nothing.
    """
    endpoint, proxy = endpoint_of(job, "judge"), job.spec.way_out.proxy
    egress: list[dict[str, Any]] = []
    if endpoint is not None:
        egress.append(_dns())
        urls = [endpoint.url, *([proxy.url] if proxy is not None else [])]
        if (pods := endpoint.allow_to) is not None:
            peer = {
                "namespaceSelector": {"matchLabels": {NAMESPACE_NAME: pods.namespace}},
                "podSelector": {"matchLabels": dict(pods.pod_labels)},
            }
            egress.append({"to": [peer], "ports": [{"protocol": "TCP", "port": pods.port}]})
            urls = urls[1:]
        if ports := sorted({port for url in urls if (port := url_port(url)) is not None}):
            egress.append({"to": networks.outside(), "ports": [{"protocol": "TCP", "port": port} for port in ports]})
    ingress = [_metrics(job, "judge", networks.metrics_namespaces)]
    name = names.policy_name(job.metadata.name, "judge")
    return _policy(job, name, _of_phase(job, "judge"), ingress=ingress, egress=egress)


def build_push_policy(job: DPOJob, networks: Networks) -> Manifest:
    """An export that is pushed reaches what prepare does. Policies add up, so this one only opens."""
    selected = _of_phase(job, "export")
    if job.spec.iterative is not None:
        # The exports of rounds are not pushed.
        selected["matchExpressions"] = [{"key": names.LABEL_ROUND, "operator": "DoesNotExist"}]
    egress = [{"to": networks.outside()}, *_identity(job, "export", networks)]
    return _policy(job, names.push_policy_name(job.metadata.name), selected, ingress=[], egress=egress)


def build_mirror_policy(job: DPOJob, networks: Networks) -> Manifest:
    """Pods that copy checkpoints reach what prepare does, and nobody reaches them."""
    selected = _of_phase(job, "mirror")
    egress = [{"to": networks.outside()}, _dns(), *_identity(job, "mirror", networks)]
    return _policy(job, names.mirror_policy_name(job.metadata.name), selected, ingress=[], egress=egress)


_POLICIES: dict[names.Phase, Callable[[DPOJob, Networks], Manifest]] = {
    "prepare": build_prepare_policy,
    "generate": build_generate_policy,
    "judge": build_judge_policy,
    "train": build_rank_policy,
    "export": build_rank_policy,
}


def _of_phase(job: DPOJob, phase: names.PodKind) -> dict[str, Any]:
    return {"matchLabels": {names.LABEL_UID: job.metadata.uid, names.LABEL_PHASE: phase}}


def _of_phases(job: DPOJob, *phases: names.PodKind) -> dict[str, Any]:
    selected = {"key": names.LABEL_PHASE, "operator": "In", "values": list(phases)}
    return {"matchLabels": {names.LABEL_UID: job.metadata.uid}, "matchExpressions": [selected]}


def _policy(job: DPOJob, name: str, selected: dict[str, Any], *, ingress: list[Any], egress: list[Any]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": build_metadata(job, name),
        "spec": {
            "podSelector": selected,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _identity(job: DPOJob, phase: names.PodKind, networks: Networks) -> list[dict[str, Any]]:
    """The way to the service that gives the pod's identity; none for a pod without one."""
    return networks.identity_service() if has_identity(job, phase) else []


def _metrics(job: DPOJob, phase: names.Phase, namespaces: tuple[str, ...]) -> dict[str, Any]:
    rule: dict[str, Any] = {"ports": [{"protocol": "TCP", "port": ports_of(job, phase).metrics}]}
    if namespaces:
        chosen = {"key": NAMESPACE_NAME, "operator": "In", "values": list(namespaces)}
        rule["from"] = [{"namespaceSelector": {"matchExpressions": [chosen]}}]
    return rule


def _dns() -> dict[str, Any]:
    """DNS only to the cluster's pods and private addresses, since an open port to the internet allows exfiltration."""
    to = [{"namespaceSelector": {}}, *({"ipBlock": {"cidr": cidr}} for cidr in DNS_RANGES)]
    return {
        "to": to,
        "ports": [{"protocol": protocol, "port": port} for port in DNS_PORTS for protocol in ("UDP", "TCP")],
    }
