"""Second looks: what can't be taken back rests on two reads, some seconds apart, that agree.

One answer of the API can be wrong: a gateway answers in its place, or a cache is old. An operator that was restarted between
the looks begins again with a first one. docs/decisions/0012-second-looks.md lists the decisions.
"""

from dpo_operator.api.status import DPOJobStatus
from dpo_operator.planning import volumes
from dpo_operator.planning.observed import Fact, Observed
from dpo_operator.planning.stale import find_stale

# Time between a first look and the one that a decision rests on.
SECOND_LOOK_SECONDS = 3.0


def claim_lost(status: DPOJobStatus) -> Fact:
    """The claim with the job's files is missing, or another object has its name."""
    return "claim lost", status.volume.claim_uid if status.volume else ""


def job_lost(status: DPOJobStatus) -> Fact:
    """The running attempt's Job is missing, or another object has its name."""
    return "job lost", status.active_job.uid if status.active_job else ""


def job_suspended(uid: str) -> Fact:
    """The Job with this UID is suspended."""
    return "job suspended", uid


def without_pods(uid: str) -> Fact:
    """The Job with this UID is not finished and has no pod."""
    return "without pods", uid


def nothing_left(status: DPOJobStatus) -> Fact:
    """Nothing of an earlier attempt exists."""
    return "nothing left", f"{status.phase}-{status.attempt}"


def facts(status: DPOJobStatus, seen: Observed) -> frozenset[Fact]:
    """What this read shows of the above."""
    found: set[Fact] = set()
    if volumes.lost_message(status, seen):
        found.add(claim_lost(status))
    if status.active_job is not None and all(job.uid != status.active_job.uid for job in seen.jobs):
        found.add(job_lost(status))
    if not find_stale(status, seen):
        found.add(nothing_left(status))
    for job in seen.jobs:
        if job.suspended:
            found.add(job_suspended(job.uid))
        if not job.finished and not seen.pods_of(job.phase, job.attempt):
            found.add(without_pods(job.uid))
    return frozenset(found)


def seconds_left(seen: Observed, fact: Fact) -> float:
    """Seconds until a decision may rest on a fact; 0 when every read since SECOND_LOOK_SECONDS ago has shown it."""
    return max(0.0, SECOND_LOOK_SECONDS - seen.held.get(fact, 0.0))
