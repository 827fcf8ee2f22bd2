"""Why an attempt ended: one cause, found among the ends of all its pods."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dpo_operator.api import exitcodes
from dpo_operator.api.exitcodes import ExitCode, FailureClass
from dpo_operator.planning.objects import ChildJob, ChildPod, Exit

# Reasons of the DisruptionTarget condition, in words that an event can use.
DISRUPTIONS = {
    "PreemptionByScheduler": "Preempted",
    "EvictionByEvictionAPI": "Evicted",
    "TerminationByKubelet": "Evicted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
}
DISRUPTED = "Disrupted"
REFUSED_BY_NODE = "RefusedByNode"
# Reasons of a pod that Kubernetes ended before or beside its container, in the same words. Both lists bound what becomes a
# restart's reason: the texts of other components must not become values of a metric's label.
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
# A kubelet's words when the pod itself uses more than it may, and not the node as a whole.
_OWN_LIMIT = re.compile(r"exceed(s|ed) (the|its) .*limit", re.IGNORECASE)
OUT_OF_RESOURCES = "OutOfResources"
POD_FAILED = "PodFailed"
NODE_LOST = "NodeLost"
POD_DELETED = "PodDeleted"
JOB_DELETED = "JobDeleted"
OOM_KILLED = "OOMKilled"
NODE_RESTARTED = "NodeRestarted"
# Reasons of a container whose end nobody saw: the node, or its container runtime, was started anew meanwhile.
_UNSEEN = ("Unknown", "ContainerStatusUnknown")
HANG = "Hang"
GANG_INCOMPLETE = "GangIncomplete"
GANG_TIMED_OUT = "GangTimedOut"

# Every reason that a failure can have: they are values of a metric's label.
REASONS = frozenset(
    {info.reason for info in exitcodes.TABLE.values()}
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

# After the first rank's end, how long a better explanation than "a peer went away" is waited for, seconds.
SETTLE_SECONDS = 10.0
# How much earlier than its grace period a pod's end may be noticed, seconds.
GRACE_SLACK_SECONDS = 2.0
# How long after its grace period a deleted pod may still not be gone before its node counts as lost.
LATE_SECONDS = 60.0


@dataclass(frozen=True)
class Failure:
    """The cause of an attempt's end, in words for people.

    reason: one of a bounded number. exit_code: of the container, None when there is none.
    distance: how far from the cause; 0 is a failure that no other one explains.
    finished_at: RFC 3339 by the node's clock. step: optimizer steps that were finished.
    """

    reason: str
    failure_class: FailureClass
    message: str
    distance: int = 0
    finished_at: str = ""
    step: int = 0
    exit_code: int | None = None


# Distances: a failure of its own, a pod that was told to stop, a rank that lost its peer.
OWN, STOPPED, SECONDARY = 0, 1, 2


def root_cause(job: ChildJob | None, pods: Sequence[ChildPod], desired: int) -> Failure | None:
    """The cause, or None when nothing failed. desired: pods of the attempt.

    When one rank dies, Kubernetes stops the others and they lose their peers; nodes' clocks differ. So kinds of ends
    are compared first, and times only between ends of the same kind.
    """
    found = [failure for pod in pods if (failure := classify(pod)) is not None]
    if found:
        first = min(found, key=lambda f: (f.distance, f.finished_at))
        first = replace(first, step=max(f.step for f in found))
        return _gang_incomplete(first, pods, desired) if first.distance == SECONDARY else first
    if job is not None and job.failed:
        # A trainer that fails leaves its pod; no such pod means that somebody took it away.
        message = f"Job {job.name} failed and no failed pod is left: {job.failure_message or 'no message'}"
        return Failure(POD_DELETED, "infrastructure", message, distance=STOPPED)
    return None


def is_settled(failure: Failure, job: ChildJob | None, pods: Sequence[ChildPod]) -> bool:
    """Whether no better explanation can come any more: it is one already, all pods ended, or enough time passed."""
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
        said = ": ".join(words for words in (pod.reason, pod.message) if words)
        return Failure(
            _pod_reason(pod.reason),
            _class_of_eviction(pod),
            f"{_where(pod)} was ended by Kubernetes: {said or 'no reason'}",
        )
    if _is_late(pod):
        return Failure(
            NODE_LOST,
            "infrastructure",
            f"{_where(pod)} was deleted {pod.deleting_seconds:.0f} s ago and its node does not answer",
        )
    return None


def _never_ran(pod: ChildPod) -> bool:
    """Whether a pod ended that had no process: a kubelet makes up an exit code for it, and without a node there is none."""
    if pod.exit is not None:
        return pod.exit.reason == "ContainerStatusUnknown"
    return pod.pod_phase == "Failed" and not pod.reason


def _disruption_failure(pod: ChildPod) -> Failure | None:
    """A disrupted pod that still runs is saving its state, unless its node is lost or it can't be stopped."""
    if not pod.ended and not is_on_lost_node(pod) and not _is_late(pod):
        return None
    reason = DISRUPTIONS.get(pod.disruption, DISRUPTED)
    said = reason if pod.disruption in DISRUPTIONS else pod.disruption
    return Failure(
        reason,
        _class_of_eviction(pod),
        f"{_where(pod)} was taken away: {': '.join(words for words in (said, pod.message) if words)}",
        finished_at=pod.exit.finished_at if pod.exit else "",
        step=_step(pod),
        exit_code=pod.exit.code if pod.exit else None,
    )


def _is_late(pod: ChildPod) -> bool:
    """Whether a deleted pod should long be gone."""
    return pod.deleting and pod.deleting_seconds > pod.grace_seconds + LATE_SECONDS


def _class_of_eviction(pod: ChildPod) -> FailureClass:
    """Pods that outgrow a limit of their own would do so on every node, again and again."""
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
        meaning = f"Nobody saw the container's end ({end.reason}): its node, or the container runtime there, was started anew."
    elif failure_class == "secondary":
        failure_class, distance = "counted", SECONDARY
    elif _stop_was_expected(pod, end) or (end.code == ExitCode.SIGKILL and _grace_ran_out(pod)):
        failure_class, distance = "infrastructure", STOPPED
    elif end.code == ExitCode.SIGTERM:
        # Nobody who is known asked it to stop, and nothing says that it saved: that could go on for ever.
        failure_class = "counted"
    said = end.termination
    # A launcher that outlives its child only knows that it was killed; the kernel's reason tells more.
    own_words = said.message.strip() if said and reason != OOM_KILLED else ""
    return Failure(
        reason,
        failure_class,
        f"{_where(pod)} exited with code {end.code} ({reason}): {own_words or meaning}",
        distance=distance,
        finished_at=end.finished_at,
        step=_step(pod),
        exit_code=end.code,
    )


def _stop_was_expected(pod: ChildPod, end: Exit) -> bool:
    """Whether a pod ended by SIGTERM did so because it was deleted, or after its save; else it could do so for ever."""
    stopped = end.termination is not None and end.termination.outcome == "Stopped"
    return end.code == ExitCode.SIGTERM and (pod.deleting or stopped)


def _grace_ran_out(pod: ChildPod) -> bool:
    """Whether a killed pod was killed because it was deleted and did not end in time.

    Kubernetes deletes the other ranks as soon as one has failed, so a deleted pod may well have been killed before.
    """
    return pod.deleting and pod.deleting_seconds >= pod.grace_seconds - GRACE_SLACK_SECONDS


def job_deleted(name: str) -> Failure:
    """Failure of an attempt whose Job somebody deleted."""
    return Failure(JOB_DELETED, "infrastructure", f"Job {name} was deleted, and not by the operator")


def _gang_incomplete(failure: Failure, pods: Sequence[ChildPod], desired: int) -> Failure:
    """A rank that lost its peers because they never ran, or were taken away: nothing that the job did.

    A rank that fails by itself leaves a failed pod, so a missing one was removed from outside.
    """
    present = {pod.index for pod in pods}
    absent = [f"{index} (no pod)" for index in range(desired) if index not in present]
    absent += [f"{pod.index} (pod {pod.name} never started)" for pod in pods if pod.pod_phase == "Pending"]
    if not absent:
        return failure
    message = f"{failure.message} Missing node ranks: {', '.join(absent)}."
    return replace(failure, reason=GANG_INCOMPLETE, failure_class="infrastructure", message=message)


def _where(pod: ChildPod) -> str:
    said = pod.exit.termination if pod.exit else None
    rank = f"rank {said.rank}" if said else f"node rank {pod.index}"
    place = f"pod {pod.name}" + (f" on node {pod.node}" if pod.node else "")
    return f"{pod.phase} attempt {pod.attempt}: " + (f"{rank} ({place})" if pod.phase == "train" else place)


def _step(pod: ChildPod) -> int:
    said = pod.exit.termination if pod.exit else None
    return said.progress.step if said and said.progress else 0
