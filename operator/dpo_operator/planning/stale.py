"""Objects of earlier attempts and how they are removed."""

from dataclasses import dataclass

from dpo_operator.api import names
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.planning import failures
from dpo_operator.planning.actions import Action, Delete
from dpo_operator.planning.objects import ChildJob, ChildPod
from dpo_operator.planning.observed import Observed

# Ranks of a failed attempt can't save any more: their peers are gone. So they don't get the pod's whole grace period.
FAILED_GRACE_SECONDS = 10
# A pod of a lost node is removed this long after its deletion; the checkpoint fence rejects writes of a pod that still runs there.
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

    An orphaned pod belongs to no attempt, even when its Job is recreated under the same name. Once the new Job exists, the
    orphan no longer blocks.
    """
    kept = {job.uid for job in seen.jobs if _is_current(job, status) or _is_finished_phase(job, status)}
    jobs = tuple(job for job in seen.jobs if job.uid not in kept)
    # Its Job was deleted before status.activeJob was written, so the attempt number would be used again.
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
    """Whether an ended pod may stay: its Job exists, or its phase succeeded."""
    return (pod.phase, pod.attempt) in kept_attempts or (not pod.orphan and _is_finished_phase(pod, status))


def stray_removals(status: DPOJobStatus, seen: Observed) -> tuple[Action, ...]:
    """Deletions that don't block the attempt: orphaned pods with its labels, and Jobs of finished phases kept alive by a sidecar."""
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
    """Whether the Job in status.activeJob exists."""
    child = seen.job_of(status.phase, status.attempt)
    return child is not None and status.active_job is not None and child.uid == status.active_job.uid


def _is_current(child: ChildJob | ChildPod, status: DPOJobStatus) -> bool:
    return child.belongs_to(status.phase, status.attempt)


def _is_finished_phase(child: ChildJob | ChildPod, status: DPOJobStatus) -> bool:
    """Whether it belongs to the successful attempt, which is the last one, of another phase."""
    return any(child.belongs_to(phase, status.attempts.of(phase)) for phase in names.PHASES if phase != status.phase)


def removals(stale: Stale, status: DPOJobStatus, seen: Observed) -> tuple[Action, ...]:
    """Deletions for stale objects, except those that terminate on schedule.

    Pods are deleted before their Job: deleting the Job would start their full grace period, which a kubelet may not shorten
    later. The Job creates no replacements meanwhile.
    """
    actions: list[Action] = []
    parents = {(job.phase, job.attempt) for job in seen.jobs}
    for pod in stale.pods:
        grace = _grace(pod, status)
        # A pod of the current attempt without a Job in this read still has its garbage collector: either the Job was deleted
        # before status.activeJob was written, or the read missed the Job.
        has_no_controller = pod.orphan or ((pod.phase, pod.attempt) not in parents and not _is_current(pod, status))
        if pod.deleting and grace is not None and grace < pod.grace_seconds:
            actions.append(Delete("Pod", pod.name, pod.uid, grace))
        elif not pod.deleting and (grace is not None or has_no_controller):
            # No controller deletes an orphaned pod.
            actions.append(Delete("Pod", pod.name, pod.uid, grace))
    actions += [Delete("Job", job.name, job.uid) for job in stale.jobs if not job.deleting]
    return tuple(actions)


def overdue_in(pod: ChildPod) -> float:
    """Seconds until a terminating pod counts as lost."""
    return _limit(pod) - pod.deleting_seconds


def _limit(pod: ChildPod) -> float:
    return LOST_NODE_SECONDS if failures.is_on_lost_node(pod) else pod.grace_seconds + failures.LATE_SECONDS


def _grace(pod: ChildPod, status: DPOJobStatus) -> int | None:
    """Override of a stale pod's grace period, seconds; None keeps the pod's own."""
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
