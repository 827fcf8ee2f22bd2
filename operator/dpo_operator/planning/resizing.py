"""Resizing nodes or gpusPerNode of an existing job: training resumes from its last checkpoint at the new size, generation with the next unit."""

from dataclasses import replace

from dpo_operator.api import conditions as c
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.text import shown
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.shape import SIZED
from dpo_operator.planning import restarts, transitions, waiting
from dpo_operator.planning.actions import Event, Plan
from dpo_operator.planning.objects import ChildJob, Size
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.transitions import Moment
from dpo_operator.planning.validate import validate


def wanted_size(job: DPOJob) -> Size:
    """Size of the spec."""
    return Size(job.spec.nodes, job.spec.gpus_per_node)


def is_due(job: DPOJob, child: ChildJob | None) -> bool:
    """Whether the attempt was made in another size than the spec's. Jobs of earlier versions without a known size are never resized."""
    return (
        child is not None and child.phase in SIZED and child.size is not None and child.size.differs(wanted_size(job))
    )


def as_running(job: DPOJob, status: DPOJobStatus, seen: Observed) -> DPOJob:
    """The job with the running attempt's size, which decisions about that attempt's pods use.

    Without a Job of that attempt, the job as it is.
    """
    child = seen.job_of(status.phase, status.attempt)
    if child is None or child.size is None or not is_due(job, child):
        return job
    gpus = job.spec.gpus_per_node if child.size.gpus is None else child.size.gpus
    spec = job.spec.model_copy(update={"nodes": child.size.nodes, "gpus_per_node": gpus})
    return job.model_copy(update={"spec": spec})


def refusal(job: DPOJob, status: DPOJobStatus, seen: Observed) -> str:
    """Why the new size can't run, so that the attempt keeps its size; empty if it can."""
    if problems := validate(job):
        return problems.describe()
    obstacle = waiting.claim_obstacle(job, status, seen.claim)
    return obstacle[1] if obstacle is not None and obstacle[0] == c.VOLUME_UNSUITABLE else ""


def resize(status: DPOJobStatus, job: DPOJob, child: ChildJob, at: Moment) -> Plan:
    """Start an attempt at the new size. The current pods get their full grace period to save."""
    what = "Generation" if child.phase == "generate" else "Training"
    message = f"{what} resumes in size {wanted_size(job)} (nodes x GPUs of each) instead of {child.size}."
    status = transitions.mark(status, at, c.RESIZED, True, c.RESIZED, message)
    return restarts.planned(status, c.RESIZED, message, at)


def refuse(decision: Plan, child: ChildJob, why: str, at: Moment) -> Plan:
    """Keep the size of the running attempt, and report the reason once."""
    message = shown(f"Training keeps its size {child.size} (nodes x GPUs of each): {why}")
    before = c.find(decision.status.conditions, c.RESIZED)
    status = transitions.mark(decision.status, at, c.RESIZED, False, c.RESIZE_REFUSED, message)
    if before is not None and (before.status, before.message) == ("False", message):
        return replace(decision, status=status)
    event = Event("Warning", c.RESIZE_REFUSED, message)
    return replace(decision, status=status, events=(*decision.events, event))


def without_refusal(status: DPOJobStatus, at: Moment) -> DPOJobStatus:
    """Clear a refused resize once spec and attempt agree."""
    found = c.find(status.conditions, c.RESIZED)
    if found is None or found.status == "True":
        return status
    return transitions.mark(status, at, c.RESIZED, True, c.RESIZED, "Training has the size of the spec.")
