"""Observed state of one job: everything that a decision depends on, and no more."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dpo_operator.api.reports import Progress
from dpo_operator.planning.objects import ChildJob, ChildPod, Claim, Guard, Notice, Support

# What a read shows and a later one may confirm (see certainty.py): kind of fact, and the object that it is about.
Fact = tuple[str, str]


@dataclass(frozen=True)
class Turn:
    """Turn of a gang.

    may_place: whether the job may have its pods placed now. others_waiting: whether other jobs wait for their turn.
    seconds: how long the turn may take while jobs of other namespaces wait; infinite when none does.
    placing_seconds: time that the gang has been partly placed: since its turn began, or, in a queue, since its first pod
    was placed.
    """

    may_place: bool = True
    others_waiting: bool = False
    seconds: float = float("inf")
    placing_seconds: float = 0.0


@dataclass(frozen=True)
class Startup:
    """Start of an attempt whose pods do not all run.

    waiting_seconds: time that they have not all run. notices: Kubernetes' events about them, oldest first. may_try_again:
    whether the retry interval of refused pods has passed.
    """

    waiting_seconds: float = 0.0
    notices: tuple[Notice, ...] = ()
    may_try_again: bool = False


@dataclass(frozen=True)
class Heartbeat:
    """Signs of life of the running attempt.

    progress: rank 0's /status, else another rank's, else None. stalled_seconds: time since progress last changed, None if
    unknown. hung: node ranks whose kernel accepts the connection but whose process does not respond.
    """

    progress: Progress | None = None
    stalled_seconds: float | None = None
    hung: tuple[int, ...] = ()


@dataclass(frozen=True)
class Observed:
    """Observed state of one job.

    mirrors, mirror_pods: Jobs that copy checkpoints, and their pods; they are no part of an attempt.
    inputs: claims that prepare is to mount, without the volume, by name; empty once it has its Job.
    guards: None when they were not read in this pass. refused: the API server's refusal of the last write, a message.
    expansion_refused: the size that was requested for the claim, and why it was refused. held: how long every read has
    shown a fact, seconds. claim_token: what the job's claim carries if this process makes it.
    """

    jobs: tuple[ChildJob, ...] = ()
    pods: tuple[ChildPod, ...] = ()
    mirrors: tuple[ChildJob, ...] = ()
    mirror_pods: tuple[ChildPod, ...] = ()
    claim: Claim | None = None
    inputs: Mapping[str, Claim | None] = field(default_factory=dict)
    support: tuple[Support, ...] = ()
    guards: tuple[Guard, ...] | None = None
    refused: str = ""
    expansion_refused: tuple[str, str] | None = None
    turn: Turn = Turn()
    startup: Startup = Startup()
    heartbeat: Heartbeat = Heartbeat()
    claim_token: str = ""
    held: Mapping[Fact, float] = field(default_factory=dict)

    def job_of(self, phase: str | None, attempt: int) -> ChildJob | None:
        """Job of an attempt."""
        return next((j for j in self.jobs if j.belongs_to(phase, attempt)), None)

    def pods_of(self, phase: str | None, attempt: int) -> tuple[ChildPod, ...]:
        """Pods of an attempt's Job, by rank."""
        found = (p for p in self.pods if p.belongs_to(phase, attempt) and not p.orphan)
        return tuple(sorted(found, key=lambda p: (p.index, p.name)))
