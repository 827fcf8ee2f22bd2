"""A change of nodes or gpusPerNode while the job exists: training goes on from its last checkpoint in the new size."""

from dataclasses import replace

from dpo_operator.api import conditions as c
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.types import DPOJob
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
    """Whether the attempt was made in another size than the spec's. What an earlier version made is taken as it is found."""
    return (
        child is not None and child.phase == "train" and child.size is not None and child.size.differs(wanted_size(job))
    )


def as_running(job: DPOJob, status: DPOJobStatus, seen: Observed) -> DPOJob:
    """The job in the size of its current attempt: what decisions about that attempt's pods go by.

    Without a Job of that attempt it's the size that the next one will have.
    """
    child = seen.job_of(status.phase, status.attempt)
    if child is None or child.size is None or not is_due(job, child):
        return job
    gpus = job.spec.gpus_per_node if child.size.gpus is None else child.size.gpus
    spec = job.spec.model_copy(update={"nodes": child.size.nodes, "gpus_per_node": gpus})
    return job.model_copy(update={"spec": spec})


def refusal(job: DPOJob, seen: Observed) -> str:
    """Why the running attempt is better off than one of the new size, which could not run; empty when it could."""
    if problems := validate(job):
        return problems.describe()
    obstacle = waiting.claim_obstacle(job, seen.claim)
    return obstacle[1] if obstacle is not None and obstacle[0] == c.VOLUME_UNSUITABLE else ""


def resize(status: DPOJobStatus, job: DPOJob, child: ChildJob, at: Moment) -> Plan:
    """The next attempt, in the new size. The pods of this one stop with their whole grace period, and so save first."""
    message = f"Training goes on in size {wanted_size(job)} (nodes x GPUs of each) instead of {child.size}."
    status = transitions.mark(status, at, c.RESIZED, True, c.RESIZED, message)
    return restarts.planned(status, c.RESIZED, message, at)


def refuse(decision: Plan, child: ChildJob, why: str, at: Moment) -> Plan:
    """The decision about a running attempt that keeps its size, with the reason for people; told once."""
    message = c.shorten(f"Training keeps its size {child.size} (nodes x GPUs of each): {why}")
    before = c.find(decision.status.conditions, c.RESIZED)
    status = transitions.mark(decision.status, at, c.RESIZED, False, c.RESIZE_REFUSED, message)
    if before is not None and (before.status, before.message) == ("False", message):
        return replace(decision, status=status)
    event = Event("Warning", c.RESIZE_REFUSED, c.shorten(message, 1000))
    return replace(decision, status=status, events=(*decision.events, event))


def without_refusal(status: DPOJobStatus, at: Moment) -> DPOJobStatus:
    """The status without a refusal: the spec's size is that of the attempt again."""
    found = c.find(status.conditions, c.RESIZED)
    if found is None or found.status == "True":
        return status
    return transitions.mark(status, at, c.RESIZED, True, c.RESIZED, "Training has the size of the spec.")
