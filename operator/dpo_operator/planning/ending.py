"""Clean-up of a finished or deleted job: cleanPodPolicy, ttlSecondsAfterFinished, pods on lost nodes."""

from collections.abc import Sequence

from dpo_operator.api import conditions as c
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.planning import certainty, retrying
from dpo_operator.planning.actions import Action, Delete, Plan
from dpo_operator.planning.objects import LINGER_SECONDS, ChildJob, ChildPod
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.stale import Stale, overdue_in, removals
from dpo_operator.planning.transitions import Moment

MIN_DELAY_SECONDS = 5.0
# Finalizer of a deletion with propagationPolicy Orphan.
ORPHANING = "orphan"


def after_finish(job: DPOJob, status: DPOJobStatus, seen: Observed, at: Moment) -> Plan:
    """Plan for a finished job. A retry comes before the TTL: a job that is retried must not be deleted for its age."""
    if retrying.is_requested(retrying.token_of(job.metadata.annotations), status):
        return retrying.retry_finished(job, status, at)
    ttl = job.spec.ttl_seconds_after_finished
    if ttl is not None and status.completion_time and (at.now - status.completion_time).total_seconds() >= ttl:
        return Plan(status, (Delete("DPOJob", job.metadata.name, job.metadata.uid),))
    after = next_check(seen.pods, lingering=job.spec.clean_pod_policy != "None")
    doubts = [left for child in seen.jobs if not child.deleting and (left := _seconds_in_doubt(child, seen))]
    after = min((each for each in (after, *doubts) if each is not None), default=None)
    lost = removals_on_lost_nodes(seen.pods, status, seen)
    return Plan(status, (*_cleanup(job, status, seen), *lost), requeue_after=after)


def being_deleted(job: DPOJob, status: DPOJobStatus, seen: Observed) -> Plan:
    """Stop the pods of a job whose deletion is blocked by a finalizer. With `--cascade=orphan`, leave its objects alone."""
    if ORPHANING in job.metadata.finalizers:
        return Plan(status)
    jobs = tuple(Delete("Job", child.name, child.uid) for child in (*seen.jobs, *seen.mirrors) if not child.deleting)
    pods = (*seen.pods, *seen.mirror_pods)
    return Plan(status, (*jobs, *removals_on_lost_nodes(pods, status, seen)), requeue_after=next_check(pods))


def last_removals(pods: Sequence[ChildPod]) -> tuple[Action, ...]:
    """Force deletions for terminating pods of a job that no longer exists."""
    return removals_on_lost_nodes(pods, DPOJobStatus(), Observed(pods=tuple(pods)))


def removals_on_lost_nodes(pods: Sequence[ChildPod], status: DPOJobStatus, seen: Observed) -> tuple[Action, ...]:
    """Force-delete terminating pods on lost nodes; otherwise they block deletion of the claim and the namespace."""
    return removals(Stale((), tuple(pod for pod in pods if pod.deleting)), status, seen)


def next_check(pods: Sequence[ChildPod], *, lingering: bool = False) -> float | None:
    """Seconds until a terminating pod becomes overdue; None without one.

    lingering: also until a sidecar has outlived the trainer by LINGER_SECONDS.
    """
    waits = [overdue_in(pod) for pod in pods if pod.deleting]
    if lingering:
        waits += [LINGER_SECONDS - pod.failed_seconds for pod in pods if pod.exit and pod.pod_phase == "Running"]
    # One second of slack, and a minimum delay so that our last action is visible by then.
    return max(MIN_DELAY_SECONDS, min(waits) + 1.0) if waits else None


def _cleanup(job: DPOJob, status: DPOJobStatus, seen: Observed) -> tuple[Action, ...]:
    """Deletions that cleanPodPolicy asks for. Deleting a Job deletes its pods with their full grace period."""
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
    """Whether a Job is finished or about to finish by itself. Such a Job is kept, because deleting it deletes its pods' logs.

    Kubernetes stops the other pods of a Job with a failed one, and its view of a Job lags behind the pods.
    """
    pods = seen.pods_of(child.phase, child.attempt)
    failing = any(pod.failed for pod in pods)
    lingering = any(pod.lingers for pod in pods)
    if _seconds_in_doubt(child, seen):
        return True
    return not lingering and (child.finished or failing or (bool(pods) and all(pod.ended for pod in pods)))


def _seconds_in_doubt(child: ChildJob, seen: Observed) -> float:
    """Seconds until an unfinished Job that shows no pod has none for certain: those of a wrong list would lose their logs."""
    if child.finished or seen.pods_of(child.phase, child.attempt):
        return 0.0
    return certainty.seconds_left(seen, certainty.without_pods(child.uid))
