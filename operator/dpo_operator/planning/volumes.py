"""Claim conditions: size, reuse and free space. None of them blocks the job.

A claim that is too small is expanded if the operator created it, else only reported.
"""

from dataclasses import replace

from dpo_operator.api import conditions as c
from dpo_operator.api.quantity import gibibytes, to_bytes
from dpo_operator.api.reports import VolumeReport
from dpo_operator.api.status import MAX_CLAIM_TOKENS, DPOJobStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.planning import transitions, waiting
from dpo_operator.planning.actions import Action, Event, ExpandClaim, Plan
from dpo_operator.planning.objects import Claim, token_digest
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.progress import is_current
from dpo_operator.planning.transitions import Moment, changed

# Polling interval of a failed job's claim while an expansion is pending.
POLL_SECONDS = {c.EXPANSION_REQUESTED: 60.0, c.EXPANSION_REFUSED: 600.0}
# Free space is written again when it changed by this share of the volume.
WORTH_WRITING = 0.05
# Nearly full: free space below NEARLY_FULL of the total or below one checkpoint; cleared at RELIEF times that.
NEARLY_FULL = 0.1
RELIEF = 1.1

Found = tuple[DPOJobStatus, tuple[Event, ...]]


def with_volume(decision: Plan, job: DPOJob, before: DPOJobStatus, seen: Observed, at: Moment) -> Plan:
    """The plan with volume conditions, events and expansion added. before: the status before the plan."""
    status, claim = decision.status, seen.claim
    # A failed job's volume can still grow: that may be what its retry needs.
    if status.phase is None or claim is None or waiting.claim_obstacle(job, status, claim):
        return decision
    if transitions.holds(status, c.COMPLETE):
        return replace(decision, status=_needs_no_room(status, at))
    events: list[Event] = []
    if before.volume is None and status.volume is not None and (reused := _reused(job, claim)):
        events.append(reused)
    status, changes, actions = _with_size(job, status, claim, seen, at)
    events += changes
    read = seen.heartbeat.progress
    if read is not None and is_current(read, status) and read.volume is not None:
        status, changes = with_free_space(status, read.volume, at)
        events += changes
    after, small = decision.requeue_after, c.find(status.conditions, c.VOLUME_TOO_SMALL)
    if status.is_final and small is not None and small.status == "True" and small.reason in POLL_SECONDS:
        after = min(POLL_SECONDS[small.reason], float("inf") if after is None else after)
    events, actions = [*decision.events, *events], (*decision.actions, *actions)
    return replace(decision, status=status, events=tuple(events), actions=actions, requeue_after=after)


def lost_message(status: DPOJobStatus, seen: Observed) -> str:
    """Message when the claim with the job's files is gone; starting over from step 0 must never happen silently."""
    volume = status.volume
    if volume is None or (seen.claim is not None and seen.claim.uid == volume.claim_uid):
        return ""
    return (
        f"PersistentVolumeClaim {volume.claim_name} (UID {volume.claim_uid}) with the job's data and checkpoints was "
        f"deleted{' and recreated' if seen.claim else ''}."
    )


def _needs_no_room(status: DPOJobStatus, at: Moment) -> DPOJobStatus:
    """Clear the size conditions of a complete job, which writes no more."""
    for type_ in (c.VOLUME_TOO_SMALL, c.VOLUME_NEARLY_FULL):
        if transitions.holds(status, type_):
            status = transitions.mark(status, at, type_, False, c.FINISHED)
    return status


def with_token(job: DPOJob, status: DPOJobStatus, seen: Observed) -> DPOJobStatus:
    """The status with the digest of the token that the claim will carry, where the operator makes the claim.

    The digest is written before the claim is made. Until then only this process knows the token, so that nobody else can have made a
    claim that carries it.
    """
    digest = token_digest(seen.claim_token)
    if job.spec.checkpoint.volume.claim_name is not None or status.volume is not None or digest in status.claim_tokens:
        return status
    return changed(status, claim_tokens=[*status.claim_tokens, digest][-MAX_CLAIM_TOKENS:])


def _reused(job: DPOJob, claim: Claim) -> Event | None:
    """The event for a claim that the operator made for an earlier job, and that this one names."""
    if job.spec.checkpoint.volume.claim_name is None or claim.made_for_uid in (None, job.metadata.uid):
        return None
    message = f"PersistentVolumeClaim {claim.name} of an earlier job is used again, in a folder of its own."
    return Event("Normal", c.CLAIM_REUSED, message)


def _with_size(
    job: DPOJob, status: DPOJobStatus, claim: Claim, seen: Observed, at: Moment
) -> tuple[DPOJobStatus, tuple[Event, ...], tuple[Action, ...]]:
    """Compare sizes, and expand a claim that the operator created."""
    volume = job.spec.checkpoint.volume
    asked, there = volume.size, claim.capacity or claim.requested
    if not there or not _is_smaller(there, asked):
        if not transitions.holds(status, c.VOLUME_TOO_SMALL):
            return status, (), ()
        return *_with_condition(
            status, at, False, c.LARGE_ENOUGH, f"PersistentVolumeClaim {claim.name} has {there}."
        ), ()
    message = f"PersistentVolumeClaim {claim.name} has {there}, and checkpoint.volume.size is {asked}"
    if volume.claim_name is not None:
        message += "; a claim that you bring is yours to expand. The job continues with the present size."
        return *_with_condition(status, at, True, c.CLAIM_SMALLER, message), ()
    if not _is_smaller(claim.requested, asked):
        message += "; the expansion is pending."
        return *_with_condition(status, at, True, c.EXPANSION_REQUESTED, message), ()
    if not claim.bound:
        # Kubernetes resizes only bound claims.
        return status, (), ()
    if seen.expansion_refused is not None and seen.expansion_refused[0] == asked:
        message += f", but it can't be expanded: {seen.expansion_refused[1]}. The job continues with the present size."
        return *_with_condition(status, at, True, c.EXPANSION_REFUSED, message), ()
    expand = (ExpandClaim(claim.name, claim.uid, asked),)
    if transitions.holds(status, c.VOLUME_TOO_SMALL):
        # Repeated request: report only its outcome.
        return status, (), expand
    return *_with_condition(status, at, True, c.EXPANSION_REQUESTED, f"{message}; an expansion is requested."), expand


def with_free_space(status: DPOJobStatus, read: VolumeReport, at: Moment) -> Found:
    """The status with a report of the file system: written when it changed by WORTH_WRITING; the condition is updated at once."""
    volume = status.volume
    if volume is None:
        return status, ()
    was_full = transitions.holds(status, c.VOLUME_NEARLY_FULL)
    needed = max(read.total * NEARLY_FULL, read.checkpoint or 0)
    is_full = read.free < needed * (RELIEF if was_full else 1.0)
    is_significant = (
        volume.capacity_bytes != read.total
        or volume.free_bytes is None
        or abs(volume.free_bytes - read.free) >= WORTH_WRITING * read.total
    )
    if is_significant or is_full != was_full:
        kept = volume.model_copy(update={"capacity_bytes": read.total, "free_bytes": read.free})
        status = changed(status, volume=kept)
    if is_full == was_full:
        return status, ()
    message = f"{gibibytes(read.free)} of {gibibytes(read.total)} are free on PersistentVolumeClaim {volume.claim_name}"
    if not is_full:
        return _with_condition(status, at, False, c.ENOUGH_SPACE, f"{message}.", c.VOLUME_NEARLY_FULL)
    if read.checkpoint:
        message += f", and a checkpoint takes {gibibytes(read.checkpoint)}"
    message += ". Raise checkpoint.volume.size, or remove other files; a save that does not fit fails."
    return _with_condition(status, at, True, c.LOW_SPACE, message, c.VOLUME_NEARLY_FULL)


def _with_condition(
    status: DPOJobStatus, at: Moment, value: bool, reason: str, message: str, type_: str = c.VOLUME_TOO_SMALL
) -> Found:
    """Set a condition; emit an event if its reason changed."""
    before = c.find(status.conditions, type_)
    status = transitions.mark(status, at, type_, value, reason, message)
    if before is not None and before.reason == reason:
        return status, ()
    asked = reason == c.EXPANSION_REQUESTED or not value
    return status, (Event("Normal" if asked else "Warning", reason, message),)


def _is_smaller(one: str, other: str) -> bool:
    """Whether a quantity is below another; no when either can't be read."""
    try:
        return to_bytes(one) < to_bytes(other)
    except ValueError:
        return False
