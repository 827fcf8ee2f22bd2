"""Restart policy: after a failure, the next attempt or the end of the job."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Literal

from dpo_operator.api import conditions as c
from dpo_operator.api.exitcodes import ExitCode, FailureClass, info
from dpo_operator.api.failurepolicy import FailureAction, FailurePolicy, FailureRule
from dpo_operator.api.status import MAX_HISTORY, MAX_HISTORY_MESSAGE, Counting, DPOJobStatus, Restart
from dpo_operator.api.statusparts.gang import PlacementWait
from dpo_operator.api.text import shown
from dpo_operator.planning import failures, transitions
from dpo_operator.planning.actions import Event, Plan
from dpo_operator.planning.failures import Failure
from dpo_operator.planning.progress import last_step
from dpo_operator.planning.transitions import Moment

# Training that fails repeatedly without progress is broken, not unlucky (NVRx also stops after three).
MAX_RESTARTS_WITHOUT_PROGRESS = 3

# Limit on restarts that a rule leaves uncounted, of phases without steps.
MAX_UNCOUNTED_WITHOUT_STEPS = 10

# Some infrastructure reasons can be caused by the job itself: nodes that refuse pods or restart, ranks that lose each other.
# MAX_UNATTRIBUTED of them in a row without progress fail the job. Preemption, eviction and node loss are unlimited.
BY_NODES = (failures.REFUSED_BY_NODE, failures.OUT_OF_RESOURCES, failures.NODE_RESTARTED)
AMONG_RANKS = (failures.GANG_INCOMPLETE, info(ExitCode.SIGTERM).reason)
MAX_UNATTRIBUTED = 10

# A hub or object store that is down needs minutes, not seconds.
SOURCE_BACKOFF_FACTOR = 5


def after_failure(status: DPOJobStatus, failure: Failure, policy: FailurePolicy, at: Moment) -> Plan:
    """Count the failure and decide on the next attempt. Only the status changes; the next pass creates and deletes."""
    # A killed process leaves no termination message. Sentences follow the message, so it ends with a period.
    failure = replace(failure, step=max(failure.step, last_step(status)), message=_sentence(failure.message))
    status = _with_progress(status, failure)
    failure, by_rule = apply_rules(failure, policy)
    if failure.failure_class == "configuration":
        return give_up(status, failure.reason, failure.message, at)
    counted = failure.failure_class == "counted"
    times = _within_window(status.counted_restart_times, policy, at.now)
    if counted and len(times) >= policy.max_restarts:
        message = (
            f"{failure.message} There were {len(times)} counted restarts within {policy.window_seconds} s, and "
            f"failurePolicy.maxRestarts is {policy.max_restarts}."
        )
        return give_up(status, c.MAX_RESTARTS_EXCEEDED, message, at)
    if hopeless := _unattributed_limit_message(status, failure):
        return give_up(status, c.NO_PROGRESS, f"{failure.message} {hopeless}", at)
    if counted or by_rule:
        if stuck := _no_progress_message(status, counted=counted):
            return give_up(status, c.NO_PROGRESS, f"{failure.message} {stuck}", at)
        status = transitions.changed(status, restarts_without_progress=status.restarts_without_progress + 1)
    if counted:
        status = transitions.changed(
            status,
            counted_restart_times=[*times, int(at.now.timestamp())],
            counted_restarts=status.counted_restarts + 1,
        )
    return _restart(status, failure, policy, at)


def apply_rules(failure: Failure, policy: FailurePolicy) -> tuple[Failure, bool]:
    """Apply failurePolicy.rules: the failure with the class of the first rule that matches, and whether one did."""
    for number, rule in enumerate(policy.rules):
        if not _matches(rule, failure):
            continue
        message = f"{failure.message} failurePolicy.rules[{number}] says {rule.action}."
        return replace(failure, failure_class=_CLASSES[rule.action], message=message), True
    return failure, False


_CLASSES: dict[FailureAction, FailureClass] = {
    FailureAction.FAIL: "configuration",
    FailureAction.RESTART: "counted",
    FailureAction.RESTART_UNCOUNTED: "infrastructure",
}


def _matches(rule: FailureRule, failure: Failure) -> bool:
    return (
        (not rule.exit_codes or failure.exit_code in rule.exit_codes)
        and (not rule.reasons or failure.reason in rule.reasons)
        and (rule.message_contains is None or rule.message_contains in failure.message)
    )


def _no_progress_message(status: DPOJobStatus, *, counted: bool) -> str:
    """Why another restart is pointless, or empty. counted: whether it would count, and so be limited by maxRestarts."""
    done = status.restarts_without_progress
    if status.phase == "train" and done >= MAX_RESTARTS_WITHOUT_PROGRESS:
        return f"{done} restarts did not get beyond step {status.furthest_step}, so another one would not help."
    if status.phase != "train" and not counted and done >= MAX_UNCOUNTED_WITHOUT_STEPS:
        return f"{done} restarts did not get the {status.phase} phase done, so another one would not help."
    return ""


def _unattributed_limit_message(status: DPOJobStatus, failure: Failure) -> str:
    """Message when failures without a known cause repeat without progress, or empty."""
    reasons, furthest = (BY_NODES + AMONG_RANKS, status.furthest_step) if status.phase == "train" else (BY_NODES, 0)
    retried = c.find(status.conditions, c.FAILED)
    alike = [
        r
        for r in status.restart_history[-MAX_UNATTRIBUTED:]
        if r.phase == status.phase
        and r.reason in reasons
        and (r.round, r.leg) == (status.round or None, status.leg or None)
        and r.step >= furthest
        and (retried is None or r.time >= retried.last_transition_time)
    ]
    if failure.failure_class != "infrastructure" or failure.reason not in reasons or len(alike) < MAX_UNATTRIBUTED:
        return ""
    return f"The last {len(alike)} restarts had such reasons and made no progress, so another one would not help."


def give_up(status: DPOJobStatus, reason: str, message: str, at: Moment) -> Plan:
    """Fail the job."""
    failed = transitions.failed(status, reason, message, at)
    return Plan(failed, events=(Event("Warning", reason, message),), requeue_after=0)


def _restart(status: DPOJobStatus, failure: Failure, policy: FailurePolicy, at: Moment) -> Plan:
    counted = failure.failure_class == "counted"
    delay = backoff_seconds(status.restart_history, failure.reason, policy, at.now)
    counting = "counts against maxRestarts" if counted else "does not count against maxRestarts"
    restarted = _next_attempt(
        status, failure.reason, failure.message, failure.step, at, "Counted" if counted else "Uncounted", delay
    )
    message = f"{failure.message} All pods restart as attempt {restarted.attempt}; this {counting}."
    return _restart_plan(restarted, "Warning", failure.reason, message, at)


def planned(status: DPOJobStatus, reason: str, message: str, at: Moment) -> Plan:
    """Planned restart: recorded in the history, not counted, without back-off."""
    if status.placement_wait is None and not transitions.has_run(status):
        # It has held no nodes yet, and its successor keeps its place.
        status = transitions.changed(status, placement_wait=PlacementWait(waiting_since=at.now))
    return _restart_plan(
        _next_attempt(status, reason, message, last_step(status), at, "Planned"), "Normal", reason, message, at
    )


def lost(status: DPOJobStatus, reason: str, message: str, at: Moment) -> DPOJobStatus:
    """The status with the end of an attempt whose volume is lost in the history, uncounted, and a new attempt of prepare as the current."""
    status = _next_attempt(status, reason, message, last_step(status), at, "Uncounted")
    status = transitions.changed(status, phase="prepare", attempts=status.attempts.next("prepare"))
    return transitions.mark(status, at, c.RESTARTING, True, reason, message)


def _next_attempt(
    status: DPOJobStatus,
    reason: str,
    message: str,
    step: int,
    at: Moment,
    counting: Counting,
    delay: float = 0.0,
) -> DPOJobStatus:
    """The status with the end of the current attempt in its history, and the next one as the current."""
    assert status.phase is not None
    record = Restart(
        time=at.now,
        phase=status.phase,
        attempt=status.attempt,
        round=status.round or None,
        leg=status.leg or None,
        reason=reason,
        counting=counting,
        step=step if status.phase == "train" else 0,
        message=shown(message, MAX_HISTORY_MESSAGE),
    )
    status = transitions.changed(
        transitions.stopped(status),
        attempts=status.attempts.next(status.phase),
        active_job=None,
        restarts=status.restarts + 1,
        restart_history=[*status.restart_history, record][-MAX_HISTORY:],
        not_before=at.now + timedelta(seconds=delay) if delay else None,
        message=message,
    )
    return transitions.mark(status, at, c.RUNNING, False, reason, message)


def _restart_plan(
    status: DPOJobStatus, kind: Literal["Normal", "Warning"], reason: str, message: str, at: Moment
) -> Plan:
    status = transitions.mark(status, at, c.RESTARTING, True, reason, message)
    return Plan(status, events=(Event(kind, reason, message),), requeue_after=0)


def backoff_seconds(history: list[Restart], reason: str, policy: FailurePolicy, now: datetime) -> float:
    """Wait before the next attempt, by the number of restarts of the last minutes.

    By default 0, 2, 4, 8 … 60 s; for an unreachable source 10, 20, 40 … 300 s.
    """
    is_source = reason == info(ExitCode.SOURCE_UNAVAILABLE).reason
    factor = SOURCE_BACKOFF_FACTOR if is_source else 1
    first, longest = policy.backoff_seconds * factor, policy.max_backoff_seconds * factor
    # Restarts within MAX_HISTORY times the longest back-off count.
    memory = timedelta(seconds=longest * MAX_HISTORY)
    recent = sum(1 for r in history if r.counting != "Planned" and now - r.time < memory)
    if recent >= MAX_HISTORY:
        return float(longest)
    exponent = recent if is_source else recent - 1
    return float(min(longest, first * 2**exponent)) if exponent >= 0 else 0.0


def is_backing_off(policy: FailurePolicy, status: DPOJobStatus, now: datetime) -> bool:
    """Whether the back-off before the next attempt has not passed."""
    return transitions.is_ahead(status.not_before, now, policy.max_backoff_seconds * SOURCE_BACKOFF_FACTOR)


def _sentence(text: str) -> str:
    """The text with a final period."""
    text = text.rstrip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _with_progress(status: DPOJobStatus, failure: Failure) -> DPOJobStatus:
    """The status with the largest step that any attempt reached."""
    if status.phase != "train":
        return status
    if failure.step <= status.furthest_step:
        return status
    return transitions.changed(status, furthest_step=failure.step, restarts_without_progress=0)


def _within_window(times: list[int], policy: FailurePolicy, now: datetime) -> list[int]:
    oldest = int(now.timestamp()) - policy.window_seconds
    return [t for t in times if t > oldest]
