"""Hang detection: no progress (a failure) and an unreachable rank 0 (only a warning)."""

from collections.abc import Sequence

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.planning.actions import Event
from dpo_operator.planning.failures import HANG, Failure
from dpo_operator.planning.objects import ChildPod
from dpo_operator.planning.observed import Heartbeat
from dpo_operator.planning.progress import last_step

# Rank 0 gets a warning when it is unreachable for this long.
SILENT_SECONDS = 30.0


def hang(status: DPOJobStatus, heartbeat: Heartbeat, pods: Sequence[ChildPod], timeout: float) -> Failure | None:
    """Failure if no step or part of a step finished within the timeout, seconds; else None.

    The other phases report no steps, and a download or a judge may take hours: there only a process that does not answer is hung.
    """
    stalled = heartbeat.stalled_seconds
    hung = [_place(pod) for pod in pods if pod.index in heartbeat.hung]
    if stalled is None or stalled < timeout or (status.phase != "train" and not hung):
        return None
    if status.phase != "train":
        where = f"{status.phase} attempt {status.attempt}"
        return Failure(HANG, "counted", f"{where}: {hung[0]} did not answer for {stalled:.0f} s.")
    step = last_step(status)
    what = f"{', '.join(hung)} did not answer" if hung else "all pods run"
    message = f"train attempt {status.attempt}: nothing was finished for {stalled:.0f} s after step {step}; {what}. {stacks(status)}"
    return Failure(HANG, "counted", message)


def timeout_seconds(job: DPOJob, status: DPOJobStatus, heartbeat: Heartbeat) -> float:
    """Progress timeout now: startTimeoutSeconds until the first finished work, then hangTimeoutSeconds."""
    policy, last = job.spec.failure_policy, status.progress
    works = heartbeat.progress is not None and heartbeat.progress.last_step_at is not None
    if last is not None and last.attempt == status.attempt:
        works = works or last.step > (last.resumed_from_step or 0)
    if works and status.phase == "train":
        return policy.hang_timeout_seconds
    return max(policy.hang_timeout_seconds, policy.start_timeout_seconds)


def stacks(status: DPOJobStatus) -> str:
    """Location of the stack dumps, for messages."""
    folder = f"{names.STACKS}/attempt-{status.attempt}"
    volume = status.volume
    place = f"{folder} in folder {volume.folder} of claim {volume.claim_name}" if volume else f"{folder} on the volume"
    return f"Stacks of the ranks go to the pods' logs and to {place}."


def seconds_left(heartbeat: Heartbeat, timeout: float) -> float:
    """Seconds until the current stall reaches the timeout; infinite when it already has and is no hang."""
    left = timeout - (heartbeat.stalled_seconds or 0.0)
    return max(0.5, left) if left > 0 else float("inf")


def silent_event(pod: ChildPod, how: str, seconds: float, step: int | None) -> Event:
    """Warning about rank 0's pod. how: kind of silence. step: step that another rank reported, None if none answered."""
    message = f"Rank 0 {how} for {seconds:.0f} s: {_place(pod)}. "
    if step is not None:
        message += f"Other ranks make progress (step {step}), so the job is not restarted."
    else:
        message += (
            "No other rank that was asked answers either, so a hang could not be detected. Allow the operator to reach port "
            f"{names.METRICS_PORT_NAME} of the job's pods."
        )
    return Event("Warning", c.HEARTBEAT_SILENT, message)


def _place(pod: ChildPod) -> str:
    return f"pod {pod.name} on node {pod.node or 'unknown'}"
