"""Root cause of a failed attempt, chosen from the exit states of all its pods."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dpo_operator.api import exitcodes
from dpo_operator.api.exitcodes import ExitCode, FailureClass
from dpo_operator.api.text import quoted
from dpo_operator.planning.objects import ChildJob, ChildPod, Exit

# DisruptionTarget reasons, mapped to our reasons.
DISRUPTIONS = {
    "PreemptionByScheduler": "Preempted",
    "EvictionByEvictionAPI": "Evicted",
    "TerminationByKubelet": "Evicted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
}
DISRUPTED = "Disrupted"
REFUSED_BY_NODE = "RefusedByNode"
# Reasons of pods that Kubernetes failed without a container exit, mapped to our reasons. Both maps are closed sets, because
# reasons become metric label values.
POD_REASONS = {
    "Evicted": "Evicted",
    "Preempting": "Preempted",
    "Terminated": "NodeShutdown",
    "NodeShutdown": "NodeShutdown",
    "NodeAffinity": REFUSED_BY_NODE,
    "UnexpectedAdmissionError": REFUSED_BY_NODE,
    "NodeLost": "NodeLost",
    "DeadlineExceeded": "PodDeadlineExceeded",
}
# Kubelet message of an eviction because the pod exceeded its own limit (not node pressure).
_OWN_LIMIT = re.compile(r"exceed(s|ed) (the|its) .*limit", re.IGNORECASE)
OUT_OF_RESOURCES = "OutOfResources"
POD_FAILED = "PodFailed"
NODE_LOST = "NodeLost"
POD_DELETED = "PodDeleted"
JOB_DELETED = "JobDeleted"
OOM_KILLED = "OOMKilled"
NODE_RESTARTED = "NodeRestarted"
# Container reasons after a restart of the node or its container runtime; the real exit code is lost.
_UNSEEN = ("Unknown", "ContainerStatusUnknown")
HANG = "Hang"
GANG_INCOMPLETE = "GangIncomplete"
GANG_TIMED_OUT = "GangTimedOut"

# Every reason that a failure can have. Reasons are metric label values.
REASONS = frozenset(
    {info.reason for info in (*exitcodes.TABLE.values(), exitcodes.UNKNOWN)}
    | set(DISRUPTIONS.values())
    | set(POD_REASONS.values())
    | {
        DISRUPTED,
        OUT_OF_RESOURCES,
        POD_FAILED,
        POD_DELETED,
        JOB_DELETED,
        OOM_KILLED,
        NODE_RESTARTED,
        HANG,
        GANG_INCOMPLETE,
        GANG_TIMED_OUT,
    }
)

# How long to wait for a root cause after a rank reported only PeerLost, seconds.
SETTLE_SECONDS = 10.0
# Tolerance when a pod's end is compared with the end of its grace period, seconds.
GRACE_SLACK_SECONDS = 2.0
# A terminating pod this long past its grace period counts as on a lost node, seconds.
LATE_SECONDS = 60.0


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended.

    reason: a member of REASONS. exit_code: of the container, None without one.
    distance: rank among causes, OWN, STOPPED or SECONDARY; the smallest wins, and of equal ones the earliest.
    finished_at: RFC 3339 by the node's clock. step: finished optimizer steps.
    """

    reason: str
    failure_class: FailureClass
    message: str
    distance: int = 0
    finished_at: str = ""
    step: int = 0
    exit_code: int | None = None


# Distances, from cause to consequence: own failure, stopped by SIGTERM or aborted, lost a peer. Kubernetes stops the peers of a rank
# that crashed, and NCCL aborts the peers of a rank that was stopped.
OWN, STOPPED, SECONDARY = 0, 1, 2


def root_cause(job: ChildJob | None, pods: Sequence[ChildPod], desired: int) -> Failure | None:
    """The cause, or None when nothing failed. desired: pods of the attempt.

    One dead rank makes Kubernetes stop the others and makes them lose their peers, and node clocks differ. So failures are
    ordered by distance first, and by time only within one distance.
    """
    found = [failure for pod in pods if (failure := classify(pod)) is not None]
    if found:
        first = min(found, key=lambda f: (f.distance, f.finished_at))
        first = replace(first, step=max(f.step for f in found))
        may_follow = first.distance == SECONDARY or first.exit_code in exitcodes.ABORTS
        return _gang_incomplete(first, pods, desired) if may_follow else first
    if job is not None and job.failed:
        # A trainer that fails leaves a failed pod. Without one, the pod was deleted from outside.
        message = f"Job {job.name} failed and no failed pod is left: {quoted(job.failure_message) if job.failure_message else 'no message'}"
        return Failure(POD_DELETED, "infrastructure", message, distance=STOPPED)
    return None


def is_settled(failure: Failure, job: ChildJob | None, pods: Sequence[ChildPod]) -> bool:
    """Whether the cause is final: it is the pod's own failure, all pods have ended, or SETTLE_SECONDS have passed."""
    if failure.distance == OWN:
        return True
    waited = max([job.failed_seconds if job else 0.0, *(pod.failed_seconds for pod in pods)])
    everyone_ended = bool(pods) and all(pod.ended for pod in pods)
    return everyone_ended or waited >= SETTLE_SECONDS


def classify(pod: ChildPod) -> Failure | None:
    """Failure of one pod, or None while it runs or when it succeeded."""
    if pod.succeeded:
        return None
    if pod.deleting and not pod.disruption and _never_ran(pod):
        return Failure(POD_DELETED, "infrastructure", f"{_where(pod)} was deleted before it ran", distance=STOPPED)
    own_code = pod.exit is not None and exitcodes.info(pod.exit.code).failure_class == "configuration"
    if pod.disruption and not own_code:
        return _disruption_failure(pod)
    if pod.exit is not None:
        return _exit_failure(pod, pod.exit)
    if pod.pod_phase == "Failed":
        detail = ": ".join(text for text in (pod.reason, pod.message) if text)
        return Failure(
            _pod_reason(pod.reason),
            _class_of_eviction(pod),
            f"{_where(pod)} was ended by Kubernetes: {quoted(detail) if detail else 'no reason'}",
        )
    if _is_late(pod):
        return Failure(
            NODE_LOST,
            "infrastructure",
            f"{_where(pod)} was deleted {pod.deleting_seconds:.0f} s ago and its node does not answer",
        )
    return None


def _never_ran(pod: ChildPod) -> bool:
    """Whether the pod ended before its container ran. A kubelet then reports a made-up exit code; without a node there is none."""
    if pod.exit is not None:
        return pod.exit.reason == "ContainerStatusUnknown"
    return pod.pod_phase == "Failed" and not pod.reason


def _disruption_failure(pod: ChildPod) -> Failure | None:
    """Failure of a disrupted pod; None while it can still be saving its state."""
    if not pod.ended and not is_on_lost_node(pod) and not _is_late(pod):
        return None
    reason = DISRUPTIONS.get(pod.disruption, DISRUPTED)
    shown = reason if pod.disruption in DISRUPTIONS else pod.disruption
    return Failure(
        reason,
        _class_of_eviction(pod),
        f"{_where(pod)} was disrupted: {': '.join([shown, *([quoted(pod.message)] if pod.message else [])])}",
        finished_at=pod.exit.finished_at if pod.exit else "",
        step=_step(pod),
        exit_code=pod.exit.code if pod.exit else None,
    )


def _is_late(pod: ChildPod) -> bool:
    """Whether a deleted pod is overdue."""
    return pod.deleting and pod.deleting_seconds > pod.grace_seconds + LATE_SECONDS


def _class_of_eviction(pod: ChildPod) -> FailureClass:
    """counted if the pod exceeded its own limit, which it would do on every node; else infrastructure."""
    return "counted" if _OWN_LIMIT.search(pod.message) else "infrastructure"


def _pod_reason(reason: str) -> str:
    # The kubelet's words are OutOfcpu, OutOfnvidia.com/gpu and so on.
    return OUT_OF_RESOURCES if reason.startswith("OutOf") else POD_REASONS.get(reason, POD_FAILED)


def is_on_lost_node(pod: ChildPod) -> bool:
    """Whether Kubernetes deleted the pod because its node stopped answering."""
    return pod.disruption in ("DeletionByTaintManager", "DeletionByPodGC") and not pod.ready and not pod.ended


def _exit_failure(pod: ChildPod, end: Exit) -> Failure:
    """Failure of a pod whose container ended with a code other than 0."""
    info = exitcodes.info(end.code)
    reason, failure_class, distance = info.reason, info.failure_class, OWN
    meaning = info.meaning
    if end.reason == OOM_KILLED:
        reason, failure_class = OOM_KILLED, "counted"
        meaning = "Killed for using more memory than its limit. Raise pod.resources.limits.memory, or lower training.microBatchSize or data.maxLength."
    elif end.reason in _UNSEEN:
        reason, failure_class = NODE_RESTARTED, "infrastructure"
        meaning = f"Exit status unknown ({end.reason}): the node or its container runtime restarted."
    elif failure_class == "secondary":
        failure_class, distance = "counted", SECONDARY
    elif _stop_was_expected(pod, end) or (end.code == ExitCode.SIGKILL and _grace_ran_out(pod)):
        failure_class, distance = "infrastructure", STOPPED
    elif end.code == ExitCode.SIGTERM:
        # SIGTERM without a deletion and without a save is counted, so that it can't repeat forever.
        failure_class = "counted"
    elif end.code in exitcodes.ABORTS:
        # With NCCL a rank that lost a peer is aborted. The abort counts only when no failure before it explains it.
        distance = STOPPED
    termination = end.termination
    # The launcher sees only that its child was killed; the container's reason OOMKilled is more precise.
    reported = termination.message if termination and reason != OOM_KILLED else ""
    return Failure(
        reason,
        failure_class,
        f"{_where(pod)} exited with code {end.code} ({reason}): {quoted(reported) if reported else meaning}",
        distance=distance,
        finished_at=end.finished_at,
        step=_step(pod),
        exit_code=end.code,
    )


def _stop_was_expected(pod: ChildPod, end: Exit) -> bool:
    """Whether exit code 143 was expected: the pod was deleted, or the trainer reported a save."""
    stopped = end.termination is not None and end.termination.outcome == "Stopped"
    return end.code == ExitCode.SIGTERM and (pod.deleting or stopped)


def _grace_ran_out(pod: ChildPod) -> bool:
    """Whether SIGKILL came because the grace period of a deletion expired.

    Kubernetes deletes the other ranks as soon as one has failed, so a deleted pod may well have been killed before.
    """
    return pod.deleting and pod.deleting_seconds >= pod.grace_seconds - GRACE_SLACK_SECONDS


def job_deleted(name: str) -> Failure:
    """Failure of an attempt whose Job was deleted by someone other than the operator."""
    return Failure(JOB_DELETED, "infrastructure", f"Job {name} was deleted by someone other than the operator")


def _gang_incomplete(failure: Failure, pods: Sequence[ChildPod], desired: int) -> Failure:
    """Reclassify PeerLost or an abort as GangIncomplete when pods are missing or never started, which is not the job's fault.

    A rank that fails by itself leaves a failed pod, so a missing pod was removed from outside.
    """
    present = {pod.index for pod in pods}
    absent = [f"{index} (no pod)" for index in range(desired) if index not in present]
    absent += [f"{pod.index} (pod {pod.name} never started)" for pod in pods if pod.pod_phase == "Pending"]
    if not absent:
        return failure
    message = f"{failure.message} Missing node ranks: {', '.join(absent)}."
    return replace(failure, reason=GANG_INCOMPLETE, failure_class="infrastructure", message=message)


def _where(pod: ChildPod) -> str:
    termination = pod.exit.termination if pod.exit else None
    rank = f"rank {termination.rank}" if termination else f"node rank {pod.index}"
    place = f"pod {pod.name}" + (f" on node {pod.node}" if pod.node else "")
    return f"{pod.phase} attempt {pod.attempt}: " + (f"{rank} ({place})" if pod.phase == "train" else place)


def _step(pod: ChildPod) -> int:
    termination = pod.exit.termination if pod.exit else None
    return termination.progress.step if termination and termination.progress else 0
