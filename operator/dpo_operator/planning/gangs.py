"""Gangs take turns: the pods of one job are placed at a time, so that two jobs never hold half of what each needs.

A training Job of several pods is created suspended. It's resumed when no other gang is being placed, and suspended again
when it can't get all of its nodes: then its pods go, and others can use what it held.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import Enum

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.status import DPOJobStatus, PlacementWait, Workers
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.job import pod_count, takes_turns
from dpo_operator.planning import failures, refusals, restarts, transitions
from dpo_operator.planning.actions import Event, Plan, SuspendJob
from dpo_operator.planning.objects import ChildJob, ChildPod
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.stale import Stale, removals
from dpo_operator.planning.transitions import Moment, changed

# How often a waiting gang is looked at, whether or not it's told that its turn has come.
WAIT_SECONDS = 30.0
SETTLE_SECONDS = 1.0
# How long a gang may try while others wait: long enough for a scheduler, which needs seconds.
YIELD_SECONDS = 60.0
# Wait after the first, second, … time-out; less by up to half, so that gangs don't ask at the same moment for ever.
FIRST_BACKOFF_SECONDS = 10.0
LAST_BACKOFF_SECONDS = 300.0


class TurnState(Enum):
    """How a job stands with regard to turns: it wants none, waits for one, or has one."""

    NONE = "none"
    WAITING = "waiting"
    PLACING = "placing"


# Gangs that had no turn in vain yet: restarting ones first, since they held nodes before. Then all that had, restarting or
# not. Among each, by the time of asking: whatever never fits goes behind all others again after each of its turns.
Priority = tuple[int, datetime]


def turn_state(job: DPOJob, status: DPOJobStatus, seen: Observed, now: datetime) -> TurnState:
    """How a job stands, from what is seen alone: an operator that just started finds the same."""
    ours = job.spec.managed_by == names.MANAGER and job.metadata.deletion_timestamp is None
    child = seen.job_of("train", status.attempts.train)
    if not ours or status.is_final or status.phase is None or not takes_turns(job, status.phase):
        return TurnState.NONE
    if child is not None and (child.finished or child.deleting):
        return TurnState.NONE
    if child is not None and not child.suspended:
        pods = seen.pods_of("train", status.attempts.train)
        return TurnState.NONE if is_placed(pods, pod_count(job, "train")) else TurnState.PLACING
    if any(pod.phase == "train" and pod.placed and not pod.ended for pod in seen.pods):
        # Its nodes are not free yet.
        return TurnState.PLACING
    if child is None:
        # A gang that restarts asks before its next Job is there, or another would take the nodes that it had.
        restarts_now = transitions.holds(status, c.RESTARTING) and not seen.refused
        wants = restarts_now and not restarts.is_backing_off(job.spec.failure_policy, status, now)
    else:
        wants = not has_run(status) and not (status.placement_wait and _before(now, status.placement_wait.not_before))
    return TurnState.WAITING if wants and not job.spec.suspend else TurnState.NONE


def priority(status: DPOJobStatus, now: datetime) -> Priority:
    """Its place among those that wait; the smallest goes first."""
    placement = status.placement_wait
    if placement is not None and placement.timeouts:
        return 2, placement.not_before or placement.waiting_since
    rank = 0 if transitions.holds(status, c.RESTARTING) else 1
    return rank, placement.waiting_since if placement else now


def is_placed(pods: Sequence[ChildPod], desired: int) -> bool:
    """Whether each pod of a gang has a node."""
    return len({pod.index for pod in pods if pod.placed}) >= desired


def is_partly_placed(job: DPOJob, status: DPOJobStatus, seen: Observed) -> bool:
    """Whether some pods of a gang that a queue let begin have nodes, and others have none."""
    child = seen.job_of("train", status.attempts.train)
    if status.phase != "train" or status.is_final or child is None or child.suspended or takes_turns(job, "train"):
        return False
    pods = seen.pods_of("train", status.attempts.train)
    return any(pod.placed for pod in pods) and not is_placed(pods, pod_count(job, "train"))


def has_run(status: DPOJobStatus) -> bool:
    """Whether all pods of the current attempt ran once; what they wrote is known by its number."""
    told = status.progress is not None and status.phase == "train" and status.progress.attempt == status.attempt
    return told or transitions.holds(status, c.RUNNING)


def _before(now: datetime, time: datetime | None) -> bool:
    return transitions.is_ahead(time, now, LAST_BACKOFF_SECONDS)


def _seconds_until(time: datetime | None, at: Moment) -> float:
    return (time - at.now).total_seconds() if time is not None else 0.0


def _later(job: DPOJob, placement: PlacementWait, at: Moment) -> PlacementWait:
    """The wait with the time from which the gang asks again, later each time."""
    timeouts = placement.timeouts + 1
    seconds = round(backoff_seconds(job.metadata.uid, timeouts))
    return placement.model_copy(update={"timeouts": timeouts, "not_before": at.now + timedelta(seconds=seconds)})


def wait(
    job: DPOJob, status: DPOJobStatus, seen: Observed, child: ChildJob, pods: Sequence[ChildPod], at: Moment
) -> Plan:
    """The Job of the current attempt is suspended: by us until its turn, by a queue, or by somebody."""
    phase = status.phase
    assert phase is not None
    if has_run(status):
        message = (
            f"Job {child.name} was suspended, and not by the operator; its pods stop after a save. {phase} goes on as attempt "
            f"{status.attempt + 1}, which counts as no restart."
        )
        event = Event("Normal", c.QUEUED, message)
        return Plan(transitions.suspended_externally(status, at, message), events=(event,), requeue_after=0)
    status = changed(status, workers=Workers(desired=pod_count(job, phase), started=0))
    leftovers = tuple(pod for pod in pods if not pod.ended)
    if leftovers:
        # They are going by themselves, unless their node is lost.
        return Plan(status, removals(Stale((), leftovers), status, seen), requeue_after=SETTLE_SECONDS)
    if not takes_turns(job, phase):
        return Plan(transitions.waiting(status, at, c.QUEUED, _suspended_by(job, child)))
    placement = status.placement_wait or PlacementWait(waiting_since=at.now)
    status = changed(status, placement_wait=placement)
    if _before(at.now, placement.not_before):
        return Plan(status, requeue_after=_seconds_until(placement.not_before, at))
    if seen.refused and placement.not_before is None:
        return _ask_again_later(job, status, placement, seen.refused, at)
    if not seen.turn.may_place:
        message = f"Job {child.name} waits for its turn: the pods of another job are being placed."
        return Plan(transitions.waiting(status, at, c.QUEUED, message), requeue_after=WAIT_SECONDS)
    message = f"The {pod_count(job, phase)} pods of {child.name} are about to be placed."
    # Whoever is refused now has no wait behind it, and gets a new one.
    status = changed(status, placement_wait=placement.model_copy(update={"not_before": None}))
    status = transitions.waiting(status, at, c.PODS_PENDING, message)
    return Plan(status, (_set_suspend(child, False),), requeue_after=SETTLE_SECONDS)


def _ask_again_later(job: DPOJob, status: DPOJobStatus, placement: PlacementWait, refused: str, at: Moment) -> Plan:
    """The API server would not let the gang begin: what stands in its way must not keep others from their turn."""
    reason, message = refusals.refusal(refused, c.REQUEST_REFUSED)
    placement = _later(job, placement, at)
    status = transitions.waiting(changed(status, placement_wait=placement), at, reason, message)
    return Plan(status, requeue_after=_seconds_until(placement.not_before, at))


def _suspended_by(job: DPOJob, child: ChildJob) -> str:
    """Who decides when a Job goes on that is not ours to resume."""
    queue = job.spec.queue
    if queue is None:
        return (
            f"Job {child.name} was suspended, and not by the operator; it goes on when its spec.suspend is false again."
        )
    where = f"kubectl -n {job.metadata.namespace} get workloads.kueue.x-k8s.io"
    return f"Job {child.name} waits until {queue.kind} admits it from queue {queue.name}: {where}"


def end_turn(
    job: DPOJob, status: DPOJobStatus, seen: Observed, child: ChildJob, pods: Sequence[ChildPod], at: Moment
) -> Plan | None:
    """The end of a turn in which a gang did not get all of its nodes, or None while it may go on trying."""
    assert status.phase is not None
    if time_left(job, status, seen, pods) > 0:
        return None
    desired = pod_count(job, status.phase)
    placed = len({pod.index for pod in pods if pod.placed})
    why = next((pod.unscheduled for pod in pods if pod.unscheduled), "")
    refused = None if why or len(pods) >= desired else refusals.job_notice(child, seen.startup.notices)
    why = why or (refused[1] if refused else "")
    why = why or f"{len(pods)} of {desired} pods exist: kubectl -n {job.metadata.namespace} describe job {child.name}"
    found = f"{placed} of {desired} pods had a node after {seen.turn.placing_seconds:.0f} s ({why})."
    if has_run(status) or not takes_turns(job, status.phase):
        # The Job can't go on under the same number, or it's a queue that decides when it goes on.
        failure = failures.Failure(failures.GANG_TIMED_OUT, "infrastructure", f"Job {child.name}: {found}")
        return restarts.after_failure(status, failure, job.spec.failure_policy, at)
    before = status.placement_wait or PlacementWait(waiting_since=at.now)
    placement = _later(job, before, at)
    message = f"{found} The gang gives its nodes back and asks for another turn at {placement.not_before:%H:%M:%S} UTC."
    status = changed(status, placement_wait=placement, workers=Workers(desired=desired, started=0))
    status = transitions.waiting(status, at, c.GANG_TIMED_OUT, message)
    event = Event("Warning", c.GANG_TIMED_OUT, message)
    return Plan(status, (_set_suspend(child, True),), (event,), requeue_after=SETTLE_SECONDS)


def time_left(job: DPOJob, status: DPOJobStatus, seen: Observed, pods: Sequence[ChildPod]) -> float:
    """Seconds until a gang has to give its nodes back; infinite for one that has them all, and in a queue for one without any.

    Queues can count what nodes have together, and let a gang begin that does not fit on them.
    """
    assert status.phase is not None
    takes_one = takes_turns(job, status.phase) and not is_placed(pods, pod_count(job, status.phase))
    if not takes_one and not is_partly_placed(job, status, seen):
        return float("inf")
    limit = float(job.spec.failure_policy.gang_timeout_seconds)
    if takes_one and seen.turn.others_waiting:
        limit = min(limit, YIELD_SECONDS)
    return limit - seen.turn.placing_seconds


def placed(status: DPOJobStatus, pods: Sequence[ChildPod], desired: int) -> DPOJobStatus:
    """The status without its wait, once each pod has a node."""
    return (
        changed(status, placement_wait=None)
        if status.placement_wait is not None and is_placed(pods, desired)
        else status
    )


def with_time_left(decision: Plan, left: float) -> Plan:
    """The plan with a look at the moment when the gang's time is up."""
    if left == float("inf"):
        return decision
    after = decision.requeue_after
    return replace(decision, requeue_after=left if after is None else min(after, left))


def backoff_seconds(uid: str, timeouts: int) -> float:
    """Wait before a gang asks for another turn: 10, 20, 40 … 300 s, less by up to half of it."""
    longest = min(LAST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(timeouts - 1, 10))
    digest = hashlib.sha256(f"{uid}/{timeouts}".encode()).digest()
    return longest * (1 - 0.5 * digest[0] / 255)


def _set_suspend(child: ChildJob, value: bool) -> SuspendJob:
    return SuspendJob(child.name, child.uid, child.resource_version, value)
