"""What happens to a job that completed or failed, or that is being deleted: its pods go or stay, and after a while it goes itself."""

from collections.abc import Sequence

from dpo_operator.api import conditions as c
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.planning import retrying
from dpo_operator.planning.actions import Action, Delete, Plan
from dpo_operator.planning.objects import LINGER_SECONDS, ChildJob, ChildPod
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.stale import Stale, overdue_in, removals
from dpo_operator.planning.transitions import Moment

MIN_DELAY_SECONDS = 5.0
# Finalizer of Kubernetes while it takes the owner out of what an object made.
ORPHANING = "orphan"


def after_finish(job: DPOJob, status: DPOJobStatus, seen: Observed, at: Moment) -> Plan:
    """A retry comes first: what is to be deleted for its age may be wanted again."""
    if retrying.is_requested(retrying.token_of(job.metadata.annotations), status):
        return retrying.retry_finished(job, status, at)
    ttl = job.spec.ttl_seconds_after_finished
    if ttl is not None and status.completion_time and (at.now - status.completion_time).total_seconds() >= ttl:
        return Plan(status, (Delete("DPOJob", job.metadata.name, job.metadata.uid),))
    after = next_check(seen.pods, lingering=job.spec.clean_pod_policy != "None")
    return Plan(status, (*_cleanup(job, status, seen), *_removals_on_lost_nodes(status, seen)), requeue_after=after)


def being_deleted(job: DPOJob, status: DPOJobStatus, seen: Observed) -> Plan:
    """A job that is being deleted and is still there, because somebody's finalizer holds it: nothing of it runs on.

    When all that it made was to be left alone (`--cascade=orphan`), it is.
    """
    if ORPHANING in job.metadata.finalizers:
        return Plan(status)
    jobs = tuple(Delete("Job", child.name, child.uid) for child in seen.jobs if not child.deleting)
    return Plan(status, (*jobs, *_removals_on_lost_nodes(status, seen)), requeue_after=next_check(seen.pods))


def last_removals(pods: Sequence[ChildPod]) -> tuple[Action, ...]:
    """What is left to do for deleted pods of a job that is gone."""
    return _removals_on_lost_nodes(DPOJobStatus(), Observed(pods=tuple(pods)))


def _removals_on_lost_nodes(status: DPOJobStatus, seen: Observed) -> tuple[Action, ...]:
    """What takes away deleted pods that a lost node keeps: they would hold the claim and the namespace for ever."""
    return removals(Stale((), tuple(pod for pod in seen.pods if pod.deleting)), status, seen)


def next_check(pods: Sequence[ChildPod], *, lingering: bool = False) -> float | None:
    """Seconds until pods are looked at again that time alone makes overdue; None when there are none.

    lingering: also until a container beside the trainer's has gone on for too long.
    """
    waits = [overdue_in(pod) for pod in pods if pod.deleting]
    if lingering:
        waits += [LINGER_SECONDS - pod.failed_seconds for pod in pods if pod.exit and pod.pod_phase == "Running"]
    # Once more than it takes, and not at once where what was done about it is not seen yet.
    return max(MIN_DELAY_SECONDS, min(waits) + 1.0) if waits else None


def _cleanup(job: DPOJob, status: DPOJobStatus, seen: Observed) -> tuple[Action, ...]:
    """By cleanPodPolicy. Pods go with their Job, and with their whole grace period."""
    policy = job.spec.clean_pod_policy
    failed = c.find(status.conditions, c.FAILED)
    past_deadline = failed is not None and failed.status == "True" and failed.reason == c.DEADLINE_EXCEEDED
    if policy == "None" and not past_deadline:
        return ()
    everything = policy == "All"
    jobs = [j for j in seen.jobs if not j.deleting and (everything or not _ends_by_itself(j, seen))]
    parents = {(j.phase, j.attempt) for j in seen.jobs}
    orphans = [
        p
        for p in seen.pods
        if not p.deleting and (everything or not p.ended) and (p.orphan or (p.phase, p.attempt) not in parents)
    ]
    return tuple([Delete("Job", j.name, j.uid) for j in jobs] + [Delete("Pod", p.name, p.uid) for p in orphans])


def _ends_by_itself(child: ChildJob, seen: Observed) -> bool:
    """Whether a Job is finished, or will be without the operator: deleting it would take its pods' logs away.

    Kubernetes stops the other pods of a Job with a failed one, and its view of a Job lags behind the pods.
    """
    pods = seen.pods_of(child.phase, child.attempt)
    failing = any(pod.failed for pod in pods)
    lingering = any(pod.lingers for pod in pods)
    return not lingering and (child.finished or failing or (bool(pods) and all(pod.ended for pod in pods)))
