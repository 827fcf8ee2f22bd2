"""What follows a failure: the next attempt, or the end of the job."""

from datetime import datetime, timedelta

from dpo_operator.api import conditions as c
from dpo_operator.api.conditions import shorten
from dpo_operator.api.exitcodes import ExitCode, info
from dpo_operator.api.status import MAX_HISTORY, MAX_HISTORY_MESSAGE, DPOJobStatus, Restart
from dpo_operator.api.training import FailurePolicy
from dpo_operator.planning import transitions
from dpo_operator.planning.actions import Event, Plan
from dpo_operator.planning.failures import Failure
from dpo_operator.planning.transitions import Moment

# Training that fails again and again without getting further is broken, not unlucky (NVRx stops after three, too).
MAX_RESTARTS_WITHOUT_PROGRESS = 3

# The first restart is immediate; each further one within the memory waits twice as long.
BACKOFF_MEMORY = timedelta(minutes=10)
BACKOFF_CAP_SECONDS = 60.0
# A hub or object store that is down needs minutes, not seconds.
SOURCE_BACKOFF_FACTOR = 10.0
SOURCE_BACKOFF_CAP_SECONDS = 300.0


def after_failure(status: DPOJobStatus, failure: Failure, policy: FailurePolicy, at: Moment) -> Plan:
    """Count the failure, and decide on the next attempt. Nothing is created or deleted: that is the next plan's."""
    status = _with_progress(status, failure)
    if failure.failure_class == "configuration":
        return give_up(status, failure.reason, failure.message, at)
    if failure.failure_class == "counted":
        times = _within_window(status.counted_restart_times, policy, at.now)
        if len(times) >= policy.max_restarts:
            message = (
                f"{failure.message} There were {len(times)} counted restarts within {policy.window_seconds} s, and "
                f"failurePolicy.maxRestarts is {policy.max_restarts}."
            )
            return give_up(status, c.MAX_RESTARTS_EXCEEDED, message, at)
        if status.phase == "train" and status.restarts_without_progress >= MAX_RESTARTS_WITHOUT_PROGRESS:
            message = (
                f"{failure.message} {status.restarts_without_progress} restarts did not get beyond step "
                f"{status.best_step}, so another one would not help."
            )
            return give_up(status, c.NO_PROGRESS, message, at)
        status = transitions.changed(
            status,
            counted_restart_times=[*times, int(at.now.timestamp())],
            restarts_count_towards_max=status.restarts_count_towards_max + 1,
            restarts_without_progress=status.restarts_without_progress + 1,
        )
    return _restart(status, failure, at)


def give_up(status: DPOJobStatus, reason: str, message: str, at: Moment) -> Plan:
    """Fail the job."""
    failed = transitions.failed(status, reason, message, at)
    return Plan(failed, events=(Event("Warning", reason, shorten(message, 1000)),), requeue_after=0)


def _restart(status: DPOJobStatus, failure: Failure, at: Moment) -> Plan:
    assert status.phase is not None
    counted = failure.failure_class == "counted"
    delay = backoff_seconds(status.restart_history, failure.reason, at.now)
    record = Restart(
        time=at.now,
        phase=status.phase,
        attempt=status.attempt,
        reason=failure.reason,
        failure_class="counted" if counted else "infrastructure",
        step=failure.step if status.phase == "train" else 0,
        message=shorten(failure.message, MAX_HISTORY_MESSAGE),
    )
    status = transitions.changed(
        status,
        attempts=status.attempts.next(status.phase),
        active_job=None,
        restarts=status.restarts + 1,
        restart_history=[*status.restart_history, record][-MAX_HISTORY:],
        not_before=at.now + timedelta(seconds=delay) if delay else None,
        message=shorten(failure.message),
    )
    status = transitions.stopped(status)
    counting = "counts against maxRestarts" if counted else "does not count against maxRestarts"
    message = f"{failure.message} All pods restart as attempt {status.attempt}; this {counting}."
    status = transitions.mark(status, at, c.RUNNING, False, failure.reason, failure.message)
    status = transitions.mark(status, at, c.RESTARTING, True, failure.reason, message)
    return Plan(status, events=(Event("Warning", failure.reason, shorten(message, 1000)),), requeue_after=0)


def planned(status: DPOJobStatus, reason: str, message: str, step: int, at: Moment) -> Plan:
    """The next attempt without a failure: it's told like a restart, counts against nothing, and begins at once."""
    assert status.phase is not None
    record = Restart(
        time=at.now,
        phase=status.phase,
        attempt=status.attempt,
        reason=reason,
        failure_class="planned",
        step=step,
        message=shorten(message, MAX_HISTORY_MESSAGE),
    )
    status = transitions.changed(
        transitions.stopped(status),
        attempts=status.attempts.next(status.phase),
        active_job=None,
        not_before=None,
        restarts=status.restarts + 1,
        restart_history=[*status.restart_history, record][-MAX_HISTORY:],
        message=shorten(message),
    )
    status = transitions.mark(status, at, c.RUNNING, False, reason, message)
    status = transitions.mark(status, at, c.RESTARTING, True, reason, message)
    return Plan(status, events=(Event("Normal", reason, shorten(message, 1000)),), requeue_after=0)


def backoff_seconds(history: list[Restart], reason: str, now: datetime) -> float:
    """Wait before the next attempt, by the number of restarts of the last minutes.

    0, 2, 4, 8 … 60 s; for an unreachable source 10, 20, 40 … 300 s.
    """
    recent = sum(1 for r in history if now - r.time < BACKOFF_MEMORY and r.failure_class != "planned")
    if reason == info(ExitCode.SOURCE_UNAVAILABLE).reason:
        return float(min(SOURCE_BACKOFF_CAP_SECONDS, SOURCE_BACKOFF_FACTOR * 2**recent))
    return float(min(BACKOFF_CAP_SECONDS, 2**recent)) if recent else 0.0


def _with_progress(status: DPOJobStatus, failure: Failure) -> DPOJobStatus:
    """The status with the furthest step that is known of, from the pods' last words or the last reading."""
    if status.phase != "train":
        return status
    read = status.progress.step if status.progress and status.progress.attempt == status.attempt else 0
    step = max(failure.step, read)
    if step <= status.best_step:
        return status
    return transitions.changed(status, best_step=step, restarts_without_progress=0)


def _within_window(times: list[int], policy: FailurePolicy, now: datetime) -> list[int]:
    oldest = int(now.timestamp()) - policy.window_seconds
    return [t for t in times if t > oldest]
