"""GPU time of a job, over all attempts. The clock starts when all pods of an attempt run, and stops when they no longer do."""

from datetime import datetime

from dpo_operator.api import conditions as c
from dpo_operator.api.quantity import hours
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.usage import UsageStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.shape import gpus_of, pod_count
from dpo_operator.planning.transitions import changed, holds


def with_usage(status: DPOJobStatus, job: DPOJob, before: DPOJobStatus, now: datetime) -> DPOJobStatus:
    """The status with the clock started or stopped. job: at the size of the attempt that `before` has; before: the status a moment ago."""
    held = _gpus(status, job)
    usage = status.usage or UsageStatus()
    same = (status.phase, status.attempt) == (before.phase, before.attempt)
    if usage.since is not None and not (same and held == usage.gpus):
        seconds = usage.gpu_seconds + usage.gpus * max(0, int((now - usage.since).total_seconds()))
        usage = UsageStatus(gpu_seconds=seconds, gpu_hours=hours(seconds))
    if usage.since is None and held:
        usage = usage.model_copy(update={"gpus": held, "since": now})
    return status if usage == (status.usage or UsageStatus()) else changed(status, usage=usage)


def _gpus(status: DPOJobStatus, job: DPOJob) -> int:
    """GPUs of the attempt whose pods all run; 0 while they do not."""
    if status.phase is None or not holds(status, c.RUNNING):
        return 0
    return pod_count(job, status.phase) * gpus_of(job, status.phase)
