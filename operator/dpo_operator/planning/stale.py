"""What is left of earlier attempts, and how it goes away."""

from dataclasses import dataclass

from dpo_operator.api import names
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.planning import failures
from dpo_operator.planning.actions import Action, Delete
from dpo_operator.planning.objects import ChildJob, ChildPod
from dpo_operator.planning.observed import Observed

# Ranks of a failed attempt can't save any more: their peers are gone. So they don't get the pod's whole grace period.
FAILED_GRACE_SECONDS = 10
# A pod of a lost node is removed this long after its deletion; the fence on the volume stops a writer that still lives.
LOST_NODE_SECONDS = 10.0


@dataclass(frozen=True)
class Stale:
    """Jobs and pods that must be gone before anything is created."""

    jobs: tuple[ChildJob, ...]
    pods: tuple[ChildPod, ...]

    def __bool__(self) -> bool:
        return bool(self.jobs or self.pods)

    def describe(self) -> str:
        """For a condition's message."""
        return f"Waiting until {len(self.jobs)} Jobs and {len(self.pods)} pods of earlier attempts are gone."


def find_stale(status: DPOJobStatus, seen: Observed) -> Stale:
    """Everything but the current attempt and the finished Jobs of the phases before it, which keep their logs.

    A pod that lost its Job belongs to no attempt, not even to one whose Job is made anew under the same name. Once that Job
    is there it's in nobody's way.
    """
    kept = {job.uid for job in seen.jobs if _is_current(job, status) or _is_finished_phase(job, status)}
    jobs = tuple(job for job in seen.jobs if job.uid not in kept)
    # Its Job was deleted before it was noted that it had been made: another one would have the same number.
    unnoted = status.active_job is None and seen.job_of(status.phase, status.attempt) is None
    kept_attempts = {(job.phase, job.attempt) for job in seen.jobs if job.uid in kept}
    pods = tuple(
        pod
        for pod in seen.pods
        if (pod.orphan and not _runs(status, seen))
        or (unnoted and _is_current(pod, status))
        or (not _is_current(pod, status) and not (pod.ended and _is_kept(pod, kept_attempts, status)))
    )
    return Stale(jobs, pods)


def _is_kept(pod: ChildPod, kept_attempts: set[tuple[str, int]], status: DPOJobStatus) -> bool:
    """Whether an ended pod may stay, or go when it likes: it has its Job, or what it did is finished."""
    return (pod.phase, pod.attempt) in kept_attempts or (not pod.orphan and _is_finished_phase(pod, status))


def stray_removals(status: DPOJobStatus, seen: Observed) -> tuple[Action, ...]:
    """Deletions of what is in nobody's way: pods without a Job that carry the labels of an attempt which has its own, and Jobs of
    finished phases whose pods hold their nodes for a container that lingers."""
    strays = [pod for pod in seen.pods if pod.orphan and not pod.deleting and _is_current(pod, status)]
    lingering = {(pod.phase, pod.attempt) for pod in seen.pods if pod.lingers and _is_finished_phase(pod, status)}
    return (
        *(Delete("Pod", pod.name, pod.uid) for pod in strays if _runs(status, seen)),
        *(
            Delete("Job", job.name, job.uid)
            for job in seen.jobs
            if not job.deleting and (job.phase, job.attempt) in lingering
        ),
    )


def _runs(status: DPOJobStatus, seen: Observed) -> bool:
    """Whether the Job that the status tells of is there."""
    child = seen.job_of(status.phase, status.attempt)
    return child is not None and status.active_job is not None and child.uid == status.active_job.uid


def _is_current(child: ChildJob | ChildPod, status: DPOJobStatus) -> bool:
    return child.belongs_to(status.phase, status.attempt)


def _is_finished_phase(child: ChildJob | ChildPod, status: DPOJobStatus) -> bool:
    """Whether it's of the attempt at an earlier phase that succeeded: the last one, since no other follows."""
    return any(child.belongs_to(phase, status.attempts.of(phase)) for phase in names.PHASES if phase != status.phase)


def removals(stale: Stale, status: DPOJobStatus, seen: Observed) -> tuple[Action, ...]:
    """Deletions that take stale objects away; none for what is already going in its own time.

    Pods come before their Job, with which they would get their whole grace period: a kubelet that has begun with that may
    keep to it. The Job makes no others meanwhile.
    """
    actions: list[Action] = []
    parents = {(job.phase, job.attempt) for job in seen.jobs}
    for pod in stale.pods:
        grace = _grace(pod, status)
        # Of the current attempt is one whose Job is gone before it was noted: it goes by itself, or its Job was only not seen.
        alone = pod.orphan or ((pod.phase, pod.attempt) not in parents and not _is_current(pod, status))
        if pod.deleting and grace is not None and grace < pod.grace_seconds:
            actions.append(Delete("Pod", pod.name, pod.uid, grace))
        elif not pod.deleting and (grace is not None or alone):
            # Without a Job, nobody else would ever delete it.
            actions.append(Delete("Pod", pod.name, pod.uid, grace))
    actions += [Delete("Job", job.name, job.uid) for job in stale.jobs if not job.deleting]
    return tuple(actions)


def overdue_in(pod: ChildPod) -> float:
    """Seconds until a deleted pod counts as one that its node will never end."""
    return _limit(pod) - pod.deleting_seconds


def _limit(pod: ChildPod) -> float:
    return LOST_NODE_SECONDS if failures.is_on_lost_node(pod) else pod.grace_seconds + failures.LATE_SECONDS


def _grace(pod: ChildPod, status: DPOJobStatus) -> int | None:
    """Grace period that a stale pod gets now, seconds; None for its own."""
    if pod.deleting and pod.deleting_seconds > _limit(pod):
        return 0
    failed = any(
        r.phase == pod.phase
        and r.attempt == pod.attempt
        and r.reason != failures.JOB_DELETED
        and r.counting != "Planned"
        for r in status.restart_history
    )
    return FAILED_GRACE_SECONDS if failed and not pod.ended else None
