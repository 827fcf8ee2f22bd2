"""Copies of checkpoints to the mirror, by one Job at a time beside the training, and the restart from there when the volume is lost.

A copy never decides anything about the training: its failure is a condition and an event, and the next checkpoint brings the next copy.
"""

from collections.abc import Sequence
from dataclasses import replace

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.exitcodes import info
from dpo_operator.api.reports import MirrorReport, RecordedCheckpoints
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.stored import MirrorStatus
from dpo_operator.api.text import quoted
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.mirror import build_mirror_job
from dpo_operator.builders.pod import TrainerImage
from dpo_operator.builders.shape import pod_count
from dpo_operator.planning import ending, recorded, resizing, restarts, transitions
from dpo_operator.planning.actions import Create, Delete, Event, Plan
from dpo_operator.planning.objects import ChildJob, ChildPod
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.progress import checkpoint_status
from dpo_operator.planning.transitions import Moment, changed

# The mirror is behind when training is this many checkpoints ahead of it.
MANY_CHECKPOINTS = 5


def with_mirror(decision: Plan, job: DPOJob, seen: Observed, at: Moment, image: TrainerImage) -> Plan:
    """The plan with what copies reported, and the next copy when there is a checkpoint that none was begun for.

    job: at the size of its spec. A copy mounts the ConfigMap of the attempt that runs, whose size may be another one.
    """
    if job.spec.checkpoint.mirror is None:
        return decision
    to = job.spec.checkpoint.mirror.to
    job = resizing.as_running(job, decision.status, seen)
    decision = _off_lost_nodes(decision, seen)
    ended = [child for child in seen.mirrors if child.finished]
    for child in ended:
        if child.deleting and decision.status.mirror is not None and child.attempt <= decision.status.mirror.ended:
            continue  # it was stopped, or noted before
        pod = next((pod for pod in seen.mirror_pods if pod.attempt == child.attempt and pod.ended), None)
        status, events = _with_result(decision.status, to, child, pod, at)
        decision = replace(decision, status=status, events=(*decision.events, *events))
    removals = tuple(Delete("Job", child.name, child.uid) for child in ended if not child.deleting)
    decision = replace(decision, actions=(*decision.actions, *removals))
    if running := [child for child in seen.mirrors if not child.finished and not child.deleting]:
        stopped = _stopped(decision, job, to, seen, running, at)
        return _behind(decision, job, at) if stopped is None else stopped
    if seen.mirrors:
        return decision
    return _next_copy(_without_job(decision, to, seen, at), job, seen, at, image)


def _off_lost_nodes(decision: Plan, seen: Observed) -> Plan:
    """The plan with force deletions for terminating pods of copies on lost nodes: they would keep the volume attached there."""
    going = tuple(pod for pod in seen.mirror_pods if pod.deleting)
    if not going:
        return decision
    actions = (*decision.actions, *ending.removals_on_lost_nodes(going, decision.status, seen))
    return replace(decision, actions=actions).within(ending.next_check(going))


def _stopped(
    decision: Plan, job: DPOJob, to: str, seen: Observed, running: Sequence[ChildJob], at: Moment
) -> Plan | None:
    """The plan with the end of copies that are in the way, or that never start; None when they may go on.

    A volume of one node must be free for the next attempt, which may get another node; the next copy continues this one. A copy that has no node
    when the job ends gets none any more: it is bound to the node of the job's pods.
    """
    status = decision.status
    if status.is_final:
        placed = {pod.attempt for pod in seen.mirror_pods if pod.placed}
        late = [child for child in running if child.attempt not in placed]
        if job.spec.nodes > 1 or not late:
            return None
        status, events = _failed(
            status, to, late[-1].attempt, c.MIRROR_FAILED, "the job ended before its pod had a node.", at
        )
        decision = replace(decision, events=(*decision.events, *events))
    else:
        shared = seen.claim is not None and "ReadWriteMany" in seen.claim.access_modes
        if shared or transitions.holds(status, c.RUNNING):
            return None
        late = list(running)
        mirror = (status.mirror or MirrorStatus()).model_copy(update={"ended": late[-1].attempt, "tried": ""})
        status = changed(status, mirror=mirror)
    removals = tuple(Delete("Job", child.name, child.uid) for child in late)
    return replace(decision, status=status, actions=(*decision.actions, *removals))


def _without_job(decision: Plan, to: str, seen: Observed, at: Moment) -> Plan:
    """The plan with the end of a copy whose Job the API server refused, or that somebody deleted."""
    status, mirror = decision.status, decision.status.mirror
    if mirror is None or mirror.copies == mirror.ended:
        return decision
    next_is_due = status.checkpoint is not None and status.checkpoint.digest != mirror.tried
    if not seen.refused and not next_is_due:
        return decision  # the Job may have been made a moment ago
    reason = c.REQUEST_REFUSED if seen.refused else c.MIRROR_FAILED
    status, events = _failed(status, to, mirror.copies, reason, seen.refused or "its Job is gone.", at)
    return replace(decision, status=status, events=(*decision.events, *events))


def _next_copy(decision: Plan, job: DPOJob, seen: Observed, at: Moment, image: TrainerImage) -> Plan:
    """The plan with the Job of the next copy. It runs only beside pods of the job, which hold the volume on their node."""
    status = decision.status
    before = status.mirror or MirrorStatus()
    if status.is_final or status.phase not in ("train", "export") or not transitions.holds(status, c.RUNNING):
        return decision
    if status.checkpoint is None or status.checkpoint.digest == before.tried:
        return decision
    running = [pod for pod in seen.pods_of(status.phase, status.attempt) if pod.running and not pod.deleting]
    if len(running) < pod_count(job, status.phase):
        return decision
    mirror = before.model_copy(update={"copies": before.copies + 1, "tried": status.checkpoint.digest})
    records = RecordedCheckpoints(last_attempt=status.attempts.train, checkpoints=recorded.known(status))
    manifest = build_mirror_job(job, mirror.copies, image, records)
    if c.find(status.conditions, c.MIRRORED) is None:
        message = f"The first checkpoint, of step {status.checkpoint.step}, is being copied."
        status = transitions.mark(status, at, c.MIRRORED, False, c.MIRROR_PENDING, message)
    status = changed(status, mirror=mirror)
    return replace(decision, status=status, actions=(*decision.actions, Create(manifest)))


def _with_result(
    status: DPOJobStatus, to: str, child: ChildJob, pod: ChildPod | None, at: Moment
) -> tuple[DPOJobStatus, tuple[Event, ...]]:
    """The status with how a copy ended."""
    report = MirrorReport.from_text(pod.exit.text) if pod is not None and pod.exit is not None else None
    if report is None or report.exit_code or report.checkpoint is None:
        return _failed(status, to, child.attempt, *_failure(child, pod, report), at)
    copied = checkpoint_status(report.checkpoint)
    mirror = (status.mirror or MirrorStatus()).model_copy(update={"checkpoint": copied, "ended": child.attempt})
    message = f"The checkpoint of step {copied.step} is in {to}."
    return transitions.mark(changed(status, mirror=mirror), at, c.MIRRORED, True, c.COPIED, message), ()


def _failed(
    status: DPOJobStatus, to: str, number: int, reason: str, why: str, at: Moment
) -> tuple[DPOJobStatus, tuple[Event, ...]]:
    """The status with a copy that failed, and a warning when the copy before it did not fail so."""
    mirror = (status.mirror or MirrorStatus()).model_copy(update={"ended": number})
    has = f"has step {mirror.checkpoint.step}" if mirror.checkpoint is not None else "has no checkpoint yet"
    goes_on = (
        "The job has ended, so that no other copy follows."
        if status.is_final
        else "The next checkpoint is tried again; training goes on."
    )
    message = f"Copy {number} to {to} failed: {why} The mirror {has}. {goes_on}"
    known = c.find(status.conditions, c.MIRRORED)
    status = transitions.mark(changed(status, mirror=mirror), at, c.MIRRORED, False, reason, message)
    if known is not None and (known.status, known.reason) == ("False", reason):
        return status, ()
    return status, (Event("Warning", c.MIRROR_FAILED, message),)


def _failure(child: ChildJob, pod: ChildPod | None, report: MirrorReport | None) -> tuple[str, str]:
    """Reason and sentence of a copy that failed."""
    if report is not None and report.exit_code:
        return info(report.exit_code).reason, quoted(report.message)
    if pod is not None and pod.exit is not None:
        return (
            c.MIRROR_FAILED,
            f"its container ended with exit code {pod.exit.code} ({pod.exit.reason or 'no reason'}).",
        )
    return c.MIRROR_FAILED, quoted(child.failure_message or "its pod is gone.")


def _behind(decision: Plan, job: DPOJob, at: Moment) -> Plan:
    """The plan with a warning when a copy runs and training is many checkpoints ahead of the mirror, unless the last copy failed: that says more."""
    status = decision.status
    copied = status.mirror.checkpoint.step if status.mirror is not None and status.mirror.checkpoint is not None else 0
    newest = status.checkpoint.step if status.checkpoint is not None else 0
    condition = c.find(status.conditions, c.MIRRORED)
    if newest - copied < MANY_CHECKPOINTS * job.spec.checkpoint.every_steps or (
        condition is not None and condition.status == "False" and condition.reason != c.MIRROR_PENDING
    ):
        return decision
    message = (
        f"The newest checkpoint is of step {newest}, and the mirror has step {copied}: copying takes longer than {MANY_CHECKPOINTS} checkpoints. See "
        f"the pods with the label {names.LABEL_PHASE}=mirror; raise checkpoint.everySteps in the next job if the store is slow."
    )
    status = transitions.mark(status, at, c.MIRRORED, False, c.MIRROR_BEHIND, message)
    return replace(decision, status=status, events=(*decision.events, Event("Warning", c.MIRROR_BEHIND, message)))


def after_loss(status: DPOJobStatus, lost: str, at: Moment) -> Plan:
    """The volume is lost, as certainty says: start from the mirror's newest checkpoint on a new volume, or fail the job.

    lost: what was found. Starting over from step 0 must never happen silently, so that without a copy the job ends.
    """
    copied = status.mirror.checkpoint if status.mirror is not None else None
    if copied is None or status.phase is None:
        return restarts.give_up(
            status, c.VOLUME_LOST, f"{lost} Delete the DPOJob and create it again to start over.", at
        )
    message = f"{lost} The mirror has the checkpoint of step {copied.step}: model and data are prepared again, and training resumes from it."
    status = changed(
        restarts.lost(status, c.VOLUME_LOST, message, at),
        checkpoint=copied,
        volume=None,
        mirror=(status.mirror or MirrorStatus()).model_copy(update={"tried": copied.digest}),
    )
    status = transitions.mark(status, at, c.PREPARED, False, c.VOLUME_LOST, message)
    return Plan(status, events=(Event("Warning", c.VOLUME_LOST, message),), requeue_after=0)
