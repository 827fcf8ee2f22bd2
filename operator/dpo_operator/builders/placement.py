"""Where training pods go, and the name under which they find each other."""

from typing import Any

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.common import rank_labels

HOSTNAME = "kubernetes.io/hostname"
# The largest weight of an affinity term.
PREFERENCE = 100


def node_choice(job: DPOJob) -> dict[str, Any]:
    """Part of the spec of a pod that computes: of training, generation, and a judge with a GPU."""
    pod, spec = job.spec.pod, dict[str, Any]()
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.runtime_class_name is not None:
        spec["runtimeClassName"] = pod.runtime_class_name
    return spec


def placement(job: DPOJob) -> dict[str, Any]:
    """Part of a training pod's spec: its name in DNS, and how the gang's pods are spread."""
    pod = job.spec.pod
    spec: dict[str, Any] = {"subdomain": names.service_name(job.metadata.name)}
    if job.spec.nodes > 1:
        spec["affinity"] = {"podAntiAffinity": _terms(_term(job, HOSTNAME), required=True)}
    topology = pod.topology
    if topology is not None and topology.pack_by is not None:
        near = _terms(_term(job, topology.pack_by), required=topology.required)
        spec["affinity"] = spec.get("affinity", {}) | {"podAffinity": near}
    if topology is not None and topology.spread_by is not None:
        spread = {
            "maxSkew": 1,
            "topologyKey": topology.spread_by,
            "whenUnsatisfiable": "DoNotSchedule" if topology.required else "ScheduleAnyway",
            "labelSelector": {"matchLabels": rank_labels(job)},
        }
        spec["topologySpreadConstraints"] = [spread]
    return spec


def beside_the_job(job: DPOJob) -> dict[str, Any]:
    """Part of the spec of a pod that mounts the volume while others of the job do: a volume of one node can be mounted on that node alone."""
    if job.spec.nodes > 1:
        return {}
    others = {"key": names.LABEL_PHASE, "operator": "In", "values": ["train", "export"]}
    selector = {"matchLabels": {names.LABEL_UID: job.metadata.uid}, "matchExpressions": [others]}
    near = _terms({"topologyKey": HOSTNAME, "labelSelector": selector}, required=True)
    return {"affinity": {"podAffinity": near}}


def _term(job: DPOJob, key: str) -> dict[str, Any]:
    """The job's own ranks, compared by a label of their nodes."""
    return {"topologyKey": key, "labelSelector": {"matchLabels": rank_labels(job)}}


def _terms(term: dict[str, Any], *, required: bool) -> dict[str, Any]:
    if required:
        return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": PREFERENCE, "podAffinityTerm": term}]}
