"""Gang scheduling by turns: one job's pods are placed at a time, so that two jobs never deadlock on partial allocations.

A multi-pod training Job is created suspended and resumed on its turn. It is suspended again when not all of its pods get a
node in time, which frees the nodes that it held.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import Enum

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.status import DPOJobStatus, Workers
from dpo_operator.api.statusparts.gang import PlacementWait
from dpo_operator.api.text import quoted
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.job import takes_turns
from dpo_operator.builders.shape import pod_count
from dpo_operator.planning import certainty, failures, refusals, restarts, transitions
from dpo_operator.planning.actions import Event, Plan, SuspendJob
from dpo_operator.planning.objects import ChildJob, ChildPod
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.stale import Stale, removals
from dpo_operator.planning.transitions import Moment, changed

# Requeue interval of a waiting gang, in case the wake-up is lost.
WAIT_SECONDS = 30.0
SETTLE_SECONDS = 1.0
# Placement time-out while other gangs wait, seconds.
YIELD_SECONDS = 60.0
# Exponential back-off between placement attempts, with jitter of up to one half.
FIRST_BACKOFF_SECONDS = 10.0
LAST_BACKOFF_SECONDS = 300.0


class TurnState(Enum):
    """Turn state of a job: needs no turn, waits for one, or holds it."""

    NONE = "none"
    WAITING = "waiting"
    PLACING = "placing"


# Priority classes: 0 = restarting gangs, which held nodes before; 1 = new gangs; 2 = gangs whose placement timed out. Ties go
# to the namespace whose last turn is longest ago, then to the earliest request: a gang that never fits goes to the back after each time-out.
Priority = tuple[int, datetime]


def turn_state(job: DPOJob, status: DPOJobStatus, seen: Observed, now: datetime) -> TurnState:
    """Turn state from observed state only, so that a restarted operator computes the same."""
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
        # Pods of the old attempt still hold its nodes.
        return TurnState.PLACING
    if child is None:
        # A restarting gang requests its turn before its next Job exists; otherwise another gang would take its nodes.
        restarts_now = transitions.holds(status, c.RESTARTING) and not seen.refused
        wants = restarts_now and not restarts.is_backing_off(job.spec.failure_policy, status, now)
    else:
        wants = not transitions.has_run(status) and not (
            status.placement_wait and _before(now, status.placement_wait.not_before)
        )
    return TurnState.WAITING if wants and not job.spec.suspend else TurnState.NONE


def priority(status: DPOJobStatus, now: datetime) -> Priority:
    """Sort key among waiting jobs of one namespace; the smallest goes first."""
    placement = status.placement_wait
    if placement is not None and placement.timeouts:
        return 2, placement.not_before or placement.waiting_since
    rank = 0 if _had_nodes(status) else 1
    return rank, placement.waiting_since if placement else now


def _had_nodes(status: DPOJobStatus) -> bool:
    """Whether the gang restarts and its pods had run: a spec that was edited before does not count."""
    placement = status.placement_wait
    return transitions.holds(status, c.RESTARTING) and (placement is None or placement.had_nodes is True)


def is_placed(pods: Sequence[ChildPod], desired: int) -> bool:
    """Whether each pod of a gang has a node."""
    return len({pod.index for pod in pods if pod.placed}) >= desired


def is_partly_placed(job: DPOJob, status: DPOJobStatus, seen: Observed) -> bool:
    """Whether a gang that a queue admitted is only partly placed."""
    child = seen.job_of("train", status.attempts.train)
    if status.phase != "train" or status.is_final or child is None or child.suspended or takes_turns(job, "train"):
        return False
    pods = seen.pods_of("train", status.attempts.train)
    return any(pod.placed for pod in pods) and not is_placed(pods, pod_count(job, "train"))


def _before(now: datetime, time: datetime | None) -> bool:
    return transitions.is_ahead(time, now, LAST_BACKOFF_SECONDS)


def _seconds_until(time: datetime | None, at: Moment) -> float:
    return (time - at.now).total_seconds() if time is not None else 0.0


def _later(job: DPOJob, placement: PlacementWait, at: Moment) -> PlacementWait:
    """The wait with the next back-off."""
    timeouts = placement.timeouts + 1
    seconds = round(backoff_seconds(job.metadata.uid, timeouts))
    return placement.model_copy(update={"timeouts": timeouts, "not_before": at.now + timedelta(seconds=seconds)})


def wait(
    job: DPOJob, status: DPOJobStatus, seen: Observed, child: ChildJob, pods: Sequence[ChildPod], at: Moment
) -> Plan:
    """Plan while the attempt's Job is suspended: by the operator until its turn, by a queue, or by a user."""
    phase = status.phase
    assert phase is not None
    if transitions.has_run(status):
        if left := certainty.seconds_left(seen, certainty.job_suspended(child.uid)):
            return Plan(status, requeue_after=left)
        message = (
            f"Job {child.name} was suspended by someone other than the operator; its pods save and stop. {phase} resumes as attempt "
            f"{status.attempt + 1}; this is not counted as a restart."
        )
        event = Event("Normal", c.QUEUED, message)
        return Plan(transitions.suspended_externally(status, at, message), events=(event,), requeue_after=0)
    status = changed(status, workers=Workers(desired=pod_count(job, phase), started=0))
    leftovers = tuple(pod for pod in pods if not pod.ended)
    if leftovers:
        # They are terminating; only pods on lost nodes need a forced deletion.
        return Plan(status, removals(Stale((), leftovers), status, seen), requeue_after=SETTLE_SECONDS)
    if not takes_turns(job, phase):
        return Plan(transitions.waiting(status, at, c.QUEUED, _suspended_by(job, child)))
    placement = status.placement_wait or PlacementWait(waiting_since=at.now, had_nodes=_had_nodes(status) or None)
    status = changed(status, placement_wait=placement)
    if _before(at.now, placement.not_before):
        return Plan(status, requeue_after=_seconds_until(placement.not_before, at))
    if seen.refused and placement.not_before is None:
        return _ask_again_later(job, status, placement, seen.refused, at)
    if not seen.turn.may_place:
        message = f"Job {child.name} waits for its turn: the pods of another job are being placed."
        return Plan(transitions.waiting(status, at, c.QUEUED, message), requeue_after=WAIT_SECONDS)
    message = f"The {pod_count(job, phase)} pods of {child.name} are about to be placed."
    # Clear the back-off, so that a refusal of this request starts a new one.
    status = changed(status, placement_wait=placement.model_copy(update={"not_before": None}))
    status = transitions.waiting(status, at, c.PODS_PENDING, message)
    return Plan(status, (_set_suspend(child, False),), requeue_after=SETTLE_SECONDS)


def _ask_again_later(job: DPOJob, status: DPOJobStatus, placement: PlacementWait, refused: str, at: Moment) -> Plan:
    """Back off after the API server refused to resume the Job, so that other gangs get the turn."""
    reason, message = refusals.refusal(refused, c.REQUEST_REFUSED)
    placement = _later(job, placement, at)
    status = transitions.waiting(changed(status, placement_wait=placement), at, reason, message)
    return Plan(status, requeue_after=_seconds_until(placement.not_before, at))


def _suspended_by(job: DPOJob, child: ChildJob) -> str:
    """Message for a suspended Job that someone else must resume."""
    queue = job.spec.queue
    if queue is None:
        return f"Job {child.name} was suspended by someone other than the operator; it continues when its spec.suspend is false again."
    where = f"kubectl -n {job.metadata.namespace} get workloads.kueue.x-k8s.io"
    return f"Job {child.name} waits until {queue.kind} admits it from queue {queue.name}: {where}"


def end_turn(
    job: DPOJob, status: DPOJobStatus, seen: Observed, child: ChildJob, pods: Sequence[ChildPod], at: Moment
) -> Plan | None:
    """Plan that ends a placement that timed out; None while time is left."""
    assert status.phase is not None
    if time_left(job, status, seen, pods) > 0:
        return None
    desired = pod_count(job, status.phase)
    placed = len({pod.index for pod in pods if pod.placed})
    why = next((quoted(pod.unscheduled) for pod in pods if pod.unscheduled), "")
    refused = None if why or len(pods) >= desired else refusals.job_notice(child, seen.startup.notices)
    why = why or (refused[1] if refused else "")
    why = why or f"{len(pods)} of {desired} pods exist: kubectl -n {job.metadata.namespace} describe job {child.name}"
    found = f"{placed} of {desired} pods had a node after {seen.turn.placing_seconds:.0f} s ({why})."
    if transitions.has_run(status) or not takes_turns(job, status.phase):
        # The attempt has run, or a queue owns the Job's suspension: fail the attempt instead of suspending the Job.
        failure = failures.Failure(failures.GANG_TIMED_OUT, "infrastructure", f"Job {child.name}: {found}")
        return restarts.after_failure(status, failure, job.spec.failure_policy, at)
    before = status.placement_wait or PlacementWait(waiting_since=at.now)
    placement = _later(job, before, at)
    message = f"{found} The gang releases its nodes and retries placement at {placement.not_before:%H:%M:%S} UTC."
    status = changed(status, placement_wait=placement, workers=Workers(desired=desired, started=0))
    status = transitions.waiting(status, at, c.GANG_TIMED_OUT, message)
    event = Event("Warning", c.GANG_TIMED_OUT, message)
    return Plan(status, (_set_suspend(child, True),), (event,), requeue_after=SETTLE_SECONDS)


def time_left(job: DPOJob, status: DPOJobStatus, seen: Observed, pods: Sequence[ChildPod]) -> float:
    """Seconds until the placement times out; infinite when all pods are placed, or when a queue manages the job and none is.

    A queue admits by total capacity, so an admitted gang may still not fit the nodes.
    """
    assert status.phase is not None
    takes_one = takes_turns(job, status.phase) and not is_placed(pods, pod_count(job, status.phase))
    if not takes_one and not is_partly_placed(job, status, seen):
        return float("inf")
    limit = float(job.spec.failure_policy.gang_timeout_seconds)
    if takes_one and seen.turn.others_waiting:
        limit = min(limit, YIELD_SECONDS, seen.turn.seconds)
    return limit - seen.turn.placing_seconds


def placed(status: DPOJobStatus, pods: Sequence[ChildPod], desired: int) -> DPOJobStatus:
    """Status with `placement_wait` cleared once all pods are placed."""
    return (
        changed(status, placement_wait=None)
        if status.placement_wait is not None and is_placed(pods, desired)
        else status
    )


def with_time_left(decision: Plan, left: float) -> Plan:
    """The plan, requeued no later than the placement time-out."""
    return decision if left == float("inf") else decision.within(left)


def backoff_seconds(uid: str, timeouts: int) -> float:
    """Wait before another placement attempt: 10, 20, 40 … 300 s, less by up to half of it."""
    longest = min(LAST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(timeouts - 1, 10))
    digest = hashlib.sha256(f"{uid}/{timeouts}".encode()).digest()
    return longest * (1 - 0.5 * digest[0] / 255)


def _set_suspend(child: ChildJob, value: bool) -> SuspendJob:
    return SuspendJob(child.name, child.uid, child.resource_version, value)
