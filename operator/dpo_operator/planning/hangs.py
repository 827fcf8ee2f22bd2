"""Ranks that run and do nothing, and ranks that only say nothing."""

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

# How long rank 0's pod may say nothing before that is worth a warning.
SILENT_SECONDS = 30.0


def hang(status: DPOJobStatus, heartbeat: Heartbeat, pods: Sequence[ChildPod], timeout: float) -> Failure | None:
    """Failure of an attempt whose ranks have finished nothing for so long, no step and no part of one, or None.

    The other phases have no steps, and a download may be quiet for hours: only a process that does not answer is hung.
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
    """How long an attempt may show no progress, seconds. Loading a large model is no hang."""
    policy, last = job.spec.failure_policy, status.progress
    works = heartbeat.progress is not None and heartbeat.progress.last_step_at is not None
    if last is not None and last.attempt == status.attempt:
        works = works or last.step > (last.resumed_from_step or 0)
    if works and status.phase == "train":
        return policy.hang_timeout_seconds
    return max(policy.hang_timeout_seconds, policy.start_timeout_seconds)


def stacks(status: DPOJobStatus) -> str:
    """Where to read what the ranks of the current attempt were doing when they were stopped."""
    folder = f"{names.STACKS}/attempt-{status.attempt}"
    volume = status.volume
    place = f"{folder} in folder {volume.folder} of claim {volume.claim_name}" if volume else f"{folder} on the volume"
    return f"Stacks of the ranks go to the pods' logs and to {place}."


def seconds_left(heartbeat: Heartbeat, timeout: float) -> float:
    """Time until a stall that goes on is a hang; infinite for one that is none, however long it is."""
    left = timeout - (heartbeat.stalled_seconds or 0.0)
    return max(0.5, left) if left > 0 else float("inf")


def silent_event(pod: ChildPod, how: str, seconds: float, step: int | None) -> Event:
    """A warning about rank 0's pod. how: it keeps silent. step: that other ranks have reached, None when nobody says so."""
    message = f"Rank 0 {how} for {seconds:.0f} s: {_place(pod)}. "
    if step is not None:
        message += f"Other ranks go on (step {step}), so nothing is restarted."
    else:
        message += (
            "Nor does any other rank that was asked, so a hang would not be noticed. Let the operator reach port "
            f"{names.METRICS_PORT_NAME} of the job's pods."
        )
    return Event("Warning", c.HEARTBEAT_SILENT, message)


def _place(pod: ChildPod) -> str:
    return f"pod {pod.name} on node {pod.node or 'unknown'}"
