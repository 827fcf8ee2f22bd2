"""batch/v1 Jobs: one for each attempt at a phase."""

from typing import Any

from dpo_operator.api import names
from dpo_operator.api.reports import RecordedCheckpoints
from dpo_operator.api.types import DPOJob
from dpo_operator.builders import queue
from dpo_operator.builders.common import Manifest, build_metadata
from dpo_operator.builders.pod import TrainerImage, build_pod_template
from dpo_operator.builders.shape import SIZED, pod_count


def takes_turns(job: DPOJob, phase: names.Phase) -> bool:
    """Whether the operator decides when a phase's pods are placed: a gang of several pods that no external queue manages."""
    return job.spec.queue is None and phase == "train" and pod_count(job, phase) > 1


def _for_round(job: DPOJob, number: int) -> DPOJob:
    """The job as the pods of a round see it: only the job's own export is pushed, so no other one gets keys and a way out."""
    if not number or job.spec.iterative is None or job.spec.export.push is None:
        return job
    export = job.spec.export.model_copy(update={"push": None})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"export": export})})


def build_child_job(
    job: DPOJob,
    phase: names.Phase,
    attempt: int,
    image: TrainerImage,
    recorded: RecordedCheckpoints | None = None,
    schedulers: queue.Schedulers = queue.DEFAULT_SCHEDULERS,
    number: int = 0,
) -> Manifest:
    """Job of one attempt. recorded: the checkpoints that it may use; None for prepare. schedulers: for jobs with a queue. number: of the round or leg; 0 for none.

    backoffLimit 0 and podReplacementPolicy Failed: Kubernetes never replaces a single rank; the operator makes the
    next attempt with all of them.
    """
    spec: dict[str, Any] = {
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "parallelism": pod_count(job, phase),
        "completions": pod_count(job, phase),
        "completionMode": "Indexed",
        "suspend": takes_turns(job, phase) or queue.is_created_suspended(job, phase),
        "template": build_pod_template(_for_round(job, number), phase, attempt, image, recorded, number),
    }
    name = names.child_job_name(job.metadata.name, phase, attempt)
    manifest: Manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": build_metadata(job, name, phase=phase, attempt=attempt, number=number),
        "spec": spec,
    }
    if phase in SIZED:
        manifest["metadata"]["annotations"] = {names.ANNOTATION_SIZE: f"{job.spec.nodes}x{job.spec.gpus_per_node}"}
    return queue.in_queue(job, phase, manifest, schedulers)
