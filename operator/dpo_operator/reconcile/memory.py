"""Per-job cache of the operator. Losing it is harmless: an operator restart only restarts timers."""

import secrets
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.status import FINAL_STATES, DPOJobStatus, State
from dpo_operator.api.types import DPOJob
from dpo_operator.planning import certainty
from dpo_operator.planning.objects import Claim, Support
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.validate import Problems, read_job
from dpo_operator.queueing.stopwatch import Stopwatch
from dpo_operator.reconcile.heartbeats import Heartbeats
from dpo_operator.reconcile.ownership import Ownership
from dpo_operator.reconcile.startup import StartupTracker

EXPANSION_RETRY_SECONDS = 600.0


@dataclass
class Parsed:
    """Cached parse of spec and status; parsing costs more than planning."""

    _job: tuple[object, DPOJob | Problems] | None = None
    _status: tuple[str, DPOJobStatus] | None = None

    def job(self, raw: dict[str, Any]) -> DPOJob | Problems:
        """The job of an object; it changes with its generation, its deletion, or the annotation for a retry."""
        metadata = raw["metadata"]
        retry = (metadata.get("annotations") or {}).get(names.ANNOTATION_RETRY)
        mark = (metadata["uid"], metadata.get("generation"), metadata.get("deletionTimestamp"), retry)
        if self._job is None or self._job[0] != mark:
            self._job = (mark, read_job(raw))
        return self._job[1]

    def status(self, raw: dict[str, Any]) -> DPOJobStatus:
        """The status of an object, cached by resourceVersion."""
        version = str(raw["metadata"]["resourceVersion"])
        if self._status is None or self._status[0] != version:
            self._status = (version, DPOJobStatus.model_validate(raw.get("status") or {}))
        return self._status[1]


@dataclass
class ChildObjects:
    """Claim, Service and ConfigMap as they were last read, all three or the claim alone, at times by the monotonic clock."""

    claim: Claim | None
    support: tuple[Support, ...]
    read_at: float
    claim_read_at: float


@dataclass(frozen=True)
class RefusedExpansion:
    """A refused claim expansion, retried after EXPANSION_RETRY_SECONDS: its StorageClass may have changed."""

    size: str
    message: str
    at: float = field(default_factory=time.monotonic)

    @property
    def is_fresh(self) -> bool:
        """Whether it's too early for a retry."""
        return time.monotonic() - self.at < EXPANSION_RETRY_SECONDS


# Annotations that the operator reads; others, such as kubectl's copy of the whole object, may have 256 KiB.
_READ_ANNOTATIONS = (names.ANNOTATION_RETRY,)


def slim(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A DPOJob without what the operator does not read: managed fields, labels, and most annotations.

    A write of the status sends no more: the API server takes nothing else from it.
    """
    metadata = {key: value for key, value in raw["metadata"].items() if key not in ("managedFields", "labels")}
    annotations = metadata.pop("annotations", None) or {}
    if kept := {name: annotations[name] for name in _READ_ANNOTATIONS if name in annotations}:
        metadata["annotations"] = kept
    return {**raw, "metadata": metadata}


@dataclass
class JobMemory:
    """Memory of one job.

    raw, seen: of the last full pass. refused: the API server's last refusal. written: resourceVersions of our status writes.
    dirty: something changed since the last full pass. due_at: when that pass wants another one, by the monotonic clock. versions: resourceVersions of
    the Jobs and pods in that pass. guarded, guards_at: phase and time of the last read of guards. child_objects: cached
    claim, Service and ConfigMap. event_object: a new job as delivered by the watch, usable instead of a read. made: phase
    and attempt of the last created Job. held: how long every read has shown a fact. unsure: whether a decision waits for a
    second look. newest: resourceVersion of the newest DPOJob that was read, written or delivered by the watch. older: how
    long every read has shown an older one.
    """

    uid: str = ""
    pods: Stopwatch = field(default_factory=Stopwatch)
    heartbeats: Heartbeats = field(default_factory=Heartbeats)
    placing: Stopwatch = field(default_factory=Stopwatch)
    own: Ownership = field(default_factory=Ownership)
    claim_token: str = field(default_factory=lambda: secrets.token_hex(32))
    held: Stopwatch = field(default_factory=Stopwatch)
    unsure: bool = False
    newest: int = 0
    older: Stopwatch = field(default_factory=Stopwatch)
    startup: StartupTracker = field(default_factory=StartupTracker)
    raw: dict[str, Any] | None = None
    seen: Observed | None = None
    looked_at: float = 0.0
    guards_at: float = 0.0
    guarded: names.Phase | None = None
    refused: str = ""
    event_object: dict[str, Any] | None = None
    made: tuple[names.Phase | None, int] = (None, 0)
    expansion: RefusedExpansion | None = None
    written: deque[str] = field(default_factory=lambda: deque(maxlen=16))
    dirty: bool = True
    due_at: float | None = None
    versions: frozenset[str] = frozenset()
    child_objects: ChildObjects | None = None
    parsed: Parsed = field(default_factory=Parsed)

    @property
    def idle(self) -> bool:
        """Whether only due_at or a change brings work: the job has ended, or it is suspended and has no Jobs and pods."""
        if self.dirty or self.raw is None or (self.due_at is not None and time.monotonic() >= self.due_at):
            return False
        state = (self.raw.get("status") or {}).get("state")
        held = state == State.SUSPENDED and self.due_at is None and not self.versions
        return held or state in FINAL_STATES

    def is_settled(self, version: str, full_pass_seconds: float) -> bool:
        """Whether the periodic pass may leave the job alone, which a list shows in this resourceVersion.

        It is idle, or its own next pass is due and its last full one not long ago.
        """
        if self.dirty or self.raw is None or str(self.raw["metadata"]["resourceVersion"]) != version:
            return False
        now = time.monotonic()
        soon = self.due_at is not None and now < self.due_at and now - self.looked_at < full_pass_seconds
        return soon or self.idle

    def rest(self, state: str) -> None:
        """Keep of an idle job what tells a change: a new pass reads all else again."""
        assert self.raw is not None
        version = self.raw["metadata"]["resourceVersion"]
        self.raw = {"metadata": {"resourceVersion": version}, "status": {"state": state}}
        self.seen, self.event_object, self.child_objects, self.parsed = None, None, None, Parsed()
        self.startup, self.heartbeats = StartupTracker(), Heartbeats()

    def is_due_in(self, seconds: float | None) -> None:
        """Note when the next pass is wanted; None: only a change brings one."""
        self.due_at = None if seconds is None else time.monotonic() + seconds

    def created_job(self, status: DPOJobStatus, raw: dict[str, Any]) -> None:
        """Note a Job that the API server has just accepted: of the current attempt, or beside it."""
        self.made = (status.phase, status.attempt)
        self.own.jobs.add(raw["metadata"]["uid"])

    def with_held(self, status: DPOJobStatus, seen: Observed) -> Observed:
        """The reads with how long they and those before them have shown each fact."""
        facts = certainty.facts(status, seen)
        self.held.keep(facts)
        held = {fact: self.held.seconds(fact) for fact in facts}
        self.unsure = any(seconds < certainty.SECOND_LOOK_SECONDS for seconds in held.values())
        if certainty.claim_lost(status) in facts:
            # Not from memory the next time.
            self.child_objects = None
        return replace(seen, held=held)

    def saw(self, version: str) -> None:
        """Note a resourceVersion of the DPOJob."""
        self.newest = max(self.newest, int(version) if version.isdecimal() else 0)

    def outdated_for(self, raw: dict[str, Any]) -> float:
        """Seconds until a read that is older than what was known before counts; 0 for any other read.

        A gateway or a cache may answer so once. Several reads of the kind mean that an old copy of the storage was restored.
        """
        version = str(raw["metadata"]["resourceVersion"])
        if version.isdecimal() and int(version) < self.newest:
            self.dirty = True
            if doubt := max(0.0, certainty.SECOND_LOOK_SECONDS - self.older.seconds("older")):
                return doubt
            self.newest = 0
        self.older.keep(())
        self.saw(version)
        return 0.0

    def absent_for(self) -> float:
        """Seconds until a job that was not found counts as deleted; 0 for one of which nothing is known."""
        absent, self.dirty = ("job absent", self.uid), True
        self.held.keep([absent])
        seconds = self.held.seconds(absent)
        return max(0.0, certainty.SECOND_LOOK_SECONDS - seconds) if self.uid else 0.0
