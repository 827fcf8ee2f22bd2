"""Steps from one status to the next. Each returns a new status; conditions and counters change together here."""

from dataclasses import dataclass
from datetime import datetime
from typing import Unpack

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.phases import Step
from dpo_operator.api.status import MAX_EARLIER_JOBS, DPOJobStatus, State, StatusFields
from dpo_operator.api.text import quoted, shown


@dataclass(frozen=True)
class Moment:
    """When a decision is made, and for which generation of the spec. now: UTC, whole seconds."""

    now: datetime
    generation: int


def is_ahead(time: datetime | None, now: datetime, longest: float) -> bool:
    """Whether `time` is in the future, but at most `longest` seconds away. A later one comes from a wrong clock and is ignored."""
    return time is not None and 0 < (time - now).total_seconds() <= longest


def changed(status: DPOJobStatus, **fields: Unpack[StatusFields]) -> DPOJobStatus:
    """The status with some fields replaced."""
    if "message" in fields:
        fields["message"] = shown(fields["message"])
    return status.model_copy(update=fields)


def holds(status: DPOJobStatus, type_: str) -> bool:
    """Whether a condition is True."""
    return c.is_true(status.conditions, type_)


def has_run(status: DPOJobStatus) -> bool:
    """Whether all pods of the attempt have run. If so its number is used up, because checkpoints carry it."""
    reported = status.progress is not None and status.phase == "train" and status.progress.attempt == status.attempt
    return reported or holds(status, c.RUNNING)


def mark(status: DPOJobStatus, at: Moment, type_: str, value: bool, reason: str, message: str = "") -> DPOJobStatus:
    """The status with one condition set."""
    new = c.with_condition(status.conditions, type_, value, reason, message, now=at.now, generation=at.generation)
    return changed(status, conditions=list(new))


def settled(status: DPOJobStatus, at: Moment, before: DPOJobStatus | None = None) -> DPOJobStatus:
    """The status with derived fields (state, observedGeneration, earlierJobs) recomputed. before: the one before it."""
    ended = before.active_job if before is not None else None
    if ended is not None and ended != status.active_job:
        earlier = [job for job in status.earlier_jobs if job != ended]
        status = changed(status, earlier_jobs=[*earlier, ended][-MAX_EARLIER_JOBS:])
    return changed(status, state=_state(status), observed_generation=max(at.generation, status.observed_generation))


_WORKING: dict[names.Phase, State] = {
    "prepare": State.PREPARING,
    "generate": State.GENERATING,
    "judge": State.JUDGING,
    "train": State.TRAINING,
    "export": State.EXPORTING,
}


def _state(status: DPOJobStatus) -> State:
    for type_, state in (
        (c.FAILED, State.FAILED),
        (c.COMPLETE, State.COMPLETE),
        (c.SUSPENDED, State.SUSPENDED),
        (c.RESTARTING, State.RESTARTING),
    ):
        if holds(status, type_):
            return state
    if status.phase is not None and holds(status, c.RUNNING):
        return _WORKING[status.phase]
    return State.PENDING


def accepted(status: DPOJobStatus, at: Moment) -> DPOJobStatus:
    """The job is valid; its first phase begins."""
    message = "The job was accepted."
    status = changed(
        status,
        phase="prepare",
        attempts=status.attempts.next("prepare"),
        start_time=at.now,
        active_since=at.now,
        message=message,
    )
    status = mark(status, at, c.SUSPENDED, False, c.NOT_SUSPENDED)
    status = mark(status, at, c.PREPARED, False, c.PREPARING, "Model and data are not prepared yet.")
    return mark(status, at, c.RUNNING, False, c.PENDING, message)


def next_phase(status: DPOJobStatus, step: Step, at: Moment) -> DPOJobStatus:
    """A phase succeeded; start the first attempt of the next one."""
    phase = step.phase
    message = f"The {phase} phase{f' of {step.whose}' if step.whose else ''} is about to start."
    status = changed(
        status,
        phase=phase,
        round=step.round,
        leg=step.leg,
        attempts=status.attempts.next(phase),
        active_job=None,
        not_before=None,
        restarts_without_progress=0,
        # Attempts of each phase count from 1: what prepare reported must not pass for a reading of training.
        progress=None if phase == "train" else status.progress,
        # Each round and leg counts its steps from 0.
        furthest_step=0 if phase == "train" else status.furthest_step,
        straggler=None,
        message=message,
    )
    if holds(status, c.RESTARTING):
        status = mark(status, at, c.RESTARTING, False, c.RESTARTED)
    return mark(status, at, c.RUNNING, False, c.PENDING, message)


def completed(status: DPOJobStatus, at: Moment, more: str = "") -> DPOJobStatus:
    """All phases succeeded. more: a sentence for the message."""
    where = (
        f"{status.export.path} in folder {status.volume.folder} of claim {status.volume.claim_name}"
        if (status.export and status.volume)
        else "the job's volume"
    )
    message = f"The job is complete; the model is in {where}."
    pushed = status.export.pushed if status.export is not None else None
    if pushed is not None and c.find(status.conditions, c.PUSHED) is not None:
        message = f"The job is complete; the model is in {quoted(pushed.to)}, and in {where}."
        manifest = f", manifest {pushed.manifest}" if pushed.manifest is not None else ""
        copied = f"{quoted(pushed.to)}{manifest}, dpo_provenance.json with the SHA-256 {pushed.digest}"
        status = mark(status, at, c.PUSHED, True, c.COPIED, copied)
    if status.final_metrics and status.final_metrics.ending:
        message = f"{message} The trainer reported: {quoted(status.final_metrics.ending)}"
    message = f"{message} {more}" if more else message
    status = changed(_ended(status, at), message=message)
    return mark(status, at, c.COMPLETE, True, c.EXPORTED, message)


def stopped(status: DPOJobStatus) -> DPOJobStatus:
    """No pod runs: keep reached values, clear activity, ETA and throughput."""
    progress = status.progress
    if progress is not None:
        idle = {"activity": None, "eta": None, "eta_seconds": None, "pairs_per_second": None}
        progress = progress.model_copy(update=idle)
    return changed(status, progress=progress, straggler=None, workers=status.workers.model_copy(update={"started": 0}))


def failed(status: DPOJobStatus, reason: str, message: str, at: Moment) -> DPOJobStatus:
    """The job failed."""
    status = changed(_ended(status, at), message=message)
    if status.phase == "export" and c.find(status.conditions, c.PUSHED) is not None:
        status = mark(status, at, c.PUSHED, False, reason, message)
    return mark(status, at, c.FAILED, True, reason, message)


def _ended(status: DPOJobStatus, at: Moment) -> DPOJobStatus:
    status = changed(status, completion_time=at.now, not_before=None)
    status = stopped(status)
    for type_ in (c.RUNNING, c.RESTARTING):
        if c.find(status.conditions, type_) is not None:
            status = mark(status, at, type_, False, c.FINISHED)
    return status


def suspended(status: DPOJobStatus, at: Moment) -> DPOJobStatus:
    """spec.suspend became true. Raising the attempt number makes running pods stale, so that they are deleted."""
    message = "Stopped by spec.suspend; everything but the pods is kept."
    attempts = status.attempts
    if status.phase is not None and status.active_job is not None:
        attempts = attempts.next(status.phase)
    status = changed(
        status,
        attempts=attempts,
        active_job=None,
        not_before=None,
        active_seconds_before=active_seconds(status, at.now),
        active_since=None,
        message=message,
    )
    status = stopped(status)
    if holds(status, c.RESTARTING):
        status = mark(status, at, c.RESTARTING, False, c.SUSPENDED_BY_SPEC)
    status = mark(status, at, c.RUNNING, False, c.SUSPENDED_BY_SPEC, message)
    return mark(status, at, c.SUSPENDED, True, c.SUSPENDED_BY_SPEC, message)


def resumed(status: DPOJobStatus, at: Moment) -> DPOJobStatus:
    """spec.suspend became false. The active deadline restarts, as for batch/v1 Jobs."""
    status = changed(status, active_since=at.now, active_seconds_before=0, message="Resumed.")
    return mark(status, at, c.SUSPENDED, False, c.RESUMED)


def suspended_externally(status: DPOJobStatus, at: Moment, message: str) -> DPOJobStatus:
    """A running attempt's Job was suspended externally: continue with a new attempt from its last checkpoint."""
    assert status.phase is not None
    status = changed(status, attempts=status.attempts.next(status.phase), active_job=None, message=message)
    return mark(stopped(status), at, c.RUNNING, False, c.QUEUED, message)


def with_active_clock(status: DPOJobStatus, at: Moment, *, suspended: bool) -> DPOJobStatus:
    """Stop or start the active-time clock. suspended: whether the attempt's Job is suspended, by a queue or until its turn."""
    if suspended and status.active_since is not None:
        return changed(status, active_seconds_before=active_seconds(status, at.now), active_since=None)
    if not suspended and status.active_since is None:
        return changed(status, active_since=at.now)
    return status


def active_seconds(status: DPOJobStatus, now: datetime) -> int:
    """Time since the job was accepted, without suspended time, seconds."""
    running = (now - status.active_since).total_seconds() if status.active_since else 0.0
    return status.active_seconds_before + max(0, int(running))


def waiting(status: DPOJobStatus, at: Moment, reason: str, message: str) -> DPOJobStatus:
    """The current attempt can't run yet."""
    status = changed(status, message=message)
    return mark(status, at, c.RUNNING, False, reason, message)


def running(status: DPOJobStatus, at: Moment) -> DPOJobStatus:
    """All pods of the current attempt run."""
    if holds(status, c.RESTARTING):
        status = mark(status, at, c.RESTARTING, False, c.RESTARTED, f"Attempt {status.attempt} runs.")
    if not holds(status, c.RUNNING):
        whose = status.step.whose if status.phase else ""
        message = f"All pods of {status.phase} attempt {status.attempt}{f' ({whose})' if whose else ''} run."
        status = mark(changed(status, message=message), at, c.RUNNING, True, c.PODS_RUNNING, message)
    return status
