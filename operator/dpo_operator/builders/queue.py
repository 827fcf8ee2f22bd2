"""Labels, PodGroups and schedulerName for Kueue, Volcano and scheduler-plugins.

Prepare and export are not queued: they hold no GPU, and a job that waited twice would keep its place in no queue.
"""

from dataclasses import dataclass

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.common import Manifest, build_metadata

KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
KUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
VOLCANO_GROUP = "scheduling.k8s.io/group-name"
PLUGINS_GROUP = "scheduling.x-k8s.io/pod-group"
# Kinds of spec.queue with a PodGroup, and its API version.
POD_GROUPS = {"Volcano": "scheduling.volcano.sh/v1beta1", "SchedulerPlugins": "scheduling.x-k8s.io/v1alpha1"}


@dataclass(frozen=True)
class Schedulers:
    """Names under which gang schedulers run in this cluster."""

    volcano: str = "volcano"
    plugins: str = "scheduler-plugins-scheduler"


DEFAULT_SCHEDULERS = Schedulers()


def is_created_suspended(job: DPOJob, phase: names.Phase) -> bool:
    """Whether a phase's Job is created suspended, so that a queue resumes it."""
    return phase == "train" and job.spec.queue is not None and job.spec.queue.kind == "Kueue"


def in_queue(job: DPOJob, phase: names.Phase, child: Manifest, schedulers: Schedulers) -> Manifest:
    """A phase's Job, with the queue's labels, annotations and schedulerName."""
    queue = job.spec.queue
    if queue is None or phase != "train":
        return child
    template = child["spec"]["template"]
    group = names.pod_group_name(job.metadata.name)
    match queue.kind:
        case "Kueue":
            child["metadata"]["labels"][KUEUE_QUEUE] = queue.name
            if queue.priority_class is not None:
                child["metadata"]["labels"][KUEUE_PRIORITY] = queue.priority_class
        case "Volcano":
            template["spec"]["schedulerName"] = schedulers.volcano
            template["metadata"]["annotations"][VOLCANO_GROUP] = group
        case "SchedulerPlugins":
            template["spec"]["schedulerName"] = schedulers.plugins
            template["metadata"]["labels"][PLUGINS_GROUP] = group
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
    return {
        "apiVersion": POD_GROUPS[queue.kind],
        "kind": "PodGroup",
        "metadata": build_metadata(job, names.pod_group_name(job.metadata.name), phase="train"),
        "spec": spec,
    }
