"""Labels, PodGroups and schedulerName for Kueue, Volcano, scheduler-plugins and KAI.

What holds GPUs is queued: training, generation, and a judge with a GPU where the queue makes no PodGroup, which is of all the nodes.
Prepare and export are not: a job that waited twice would keep its place in no queue.
"""

from dataclasses import dataclass

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.common import Manifest, build_metadata
from dpo_operator.builders.shape import SIZED, gpus_of, pod_count

KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
KUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
KUEUE_TOPOLOGY = {
    True: "kueue.x-k8s.io/podset-required-topology",
    False: "kueue.x-k8s.io/podset-preferred-topology",
}
VOLCANO_GROUP = "scheduling.k8s.io/group-name"
PLUGINS_GROUP = "scheduling.x-k8s.io/pod-group"
KAI_QUEUE = "kai.scheduler/queue"
# On a Job: how many of its pods are placed together. KAI's own default is 1.
KAI_GANG = "kai.scheduler/batch-min-member"
# Kinds of spec.queue with a PodGroup, and its API version.
POD_GROUPS = {"Volcano": "scheduling.volcano.sh/v1beta1", "SchedulerPlugins": "scheduling.x-k8s.io/v1alpha1"}


@dataclass(frozen=True)
class Schedulers:
    """Names under which gang schedulers run in this cluster."""

    volcano: str = "volcano"
    plugins: str = "scheduler-plugins-scheduler"
    kai: str = "kai-scheduler"


DEFAULT_SCHEDULERS = Schedulers()


def is_queued(job: DPOJob, phase: names.Phase) -> bool:
    """Whether a queue decides when a phase's pods start."""
    queue = job.spec.queue
    return queue is not None and (phase in SIZED or (gpus_of(job, phase) > 0 and queue.kind not in POD_GROUPS))


def is_created_suspended(job: DPOJob, phase: names.Phase) -> bool:
    """Whether a phase's Job is created suspended, so that a queue resumes it."""
    return is_queued(job, phase) and job.spec.queue is not None and job.spec.queue.kind == "Kueue"


def in_queue(job: DPOJob, phase: names.Phase, child: Manifest, schedulers: Schedulers) -> Manifest:
    """A phase's Job, with the queue's labels, annotations and schedulerName."""
    queue = job.spec.queue
    if queue is None or not is_queued(job, phase):
        return child
    template = child["spec"]["template"]
    group = names.pod_group_name(job.metadata.name)
    match queue.kind:
        case "Kueue":
            child["metadata"]["labels"][KUEUE_QUEUE] = queue.name
            if queue.priority_class is not None:
                child["metadata"]["labels"][KUEUE_PRIORITY] = queue.priority_class
            if queue.topology is not None and phase == "train":
                template["metadata"]["annotations"][KUEUE_TOPOLOGY[queue.topology.required]] = queue.topology.pack_by
        case "Volcano":
            template["spec"]["schedulerName"] = schedulers.volcano
            template["metadata"]["annotations"][VOLCANO_GROUP] = group
        case "SchedulerPlugins":
            template["spec"]["schedulerName"] = schedulers.plugins
            template["metadata"]["labels"][PLUGINS_GROUP] = group
        case "KAI":
            # KAI makes the PodGroup itself, from what the Job and its pods say.
            template["spec"]["schedulerName"] = schedulers.kai
            child["metadata"].setdefault("annotations", {})[KAI_GANG] = str(pod_count(job, phase))
            for labels in (child["metadata"]["labels"], template["metadata"]["labels"]):
                labels[KAI_QUEUE] = queue.name
    return child


def build_pod_group(job: DPOJob) -> Manifest | None:
    """PodGroup of the training pods, None where the queue has none."""
    queue = job.spec.queue
    if queue is None or queue.kind not in POD_GROUPS:
        return None
    spec: Manifest = {"minMember": job.spec.nodes}
    if queue.kind == "SchedulerPlugins":
        spec["scheduleTimeoutSeconds"] = job.spec.failure_policy.gang_timeout_seconds
    if queue.name is not None:
        spec["queue"] = queue.name
    if queue.priority_class is not None:
        spec["priorityClassName"] = queue.priority_class
    if queue.topology is not None:
        tier = {"highestTierAllowed": queue.topology.highest_tier} if queue.topology.required else {}
        spec["networkTopology"] = {"mode": "hard" if queue.topology.required else "soft"} | tier
    return {
        "apiVersion": POD_GROUPS[queue.kind],
        "kind": "PodGroup",
        "metadata": build_metadata(job, names.pod_group_name(job.metadata.name), phase="train"),
        "spec": spec,
    }
