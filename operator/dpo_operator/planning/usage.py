"""GPU time of a job, over all attempts. The clock starts when all pods of an attempt run, and stops when they no longer do."""

from collections.abc import Sequence
from datetime import datetime

from dpo_operator.api import conditions as c
from dpo_operator.api.quantity import hours
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.usage import UsageStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.shape import gpus_of, pod_count
from dpo_operator.planning.objects import ChildPod
from dpo_operator.planning.transitions import changed, holds


def with_usage(
    status: DPOJobStatus, job: DPOJob, before: DPOJobStatus, now: datetime, pods: Sequence[ChildPod]
) -> DPOJobStatus:
    """The status with the clock started or stopped.

    job: at the size of the attempt that `before` has; before: the status a moment ago. pods: of that attempt.
    """
    held = _gpus(status, job, pods)
    usage = status.usage or UsageStatus()
    same = (status.phase, status.attempt) == (before.phase, before.attempt)
    if usage.since is not None and not (same and held == usage.gpus):
        seconds = usage.gpu_seconds + usage.gpus * max(0, int((now - usage.since).total_seconds()))
        usage = UsageStatus(gpu_seconds=seconds, gpu_hours=hours(seconds))
    if usage.since is None and held:
        usage = usage.model_copy(update={"gpus": held, "since": now})
    return status if usage == (status.usage or UsageStatus()) else changed(status, usage=usage)


def _gpus(status: DPOJobStatus, job: DPOJob, pods: Sequence[ChildPod]) -> int:
    """GPUs of the attempt whose pods all run; 0 while they do not. Generators work alone: each counts as long as it runs."""
    if status.phase is None:
        return 0
    if status.phase == "generate":
        return len({pod.index for pod in pods if pod.running}) * gpus_of(job, status.phase)
    if not holds(status, c.RUNNING):
        return 0
    return pod_count(job, status.phase) * gpus_of(job, status.phase)
