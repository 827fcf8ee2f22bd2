"""What the operator remembers between two looks at a job. All of it may be lost: a restart only starts the clocks anew."""

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dpo_operator.api.reports import Progress
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.planning.observed import Observed

Clock = Callable[[], float]
EXPANSION_RETRY_SECONDS = 600.0


@dataclass
class Stopwatch:
    """How long facts have been seen, by this machine's monotonic clock: no other clock can be trusted for time-outs."""

    clock: Clock = time.monotonic
    _since: dict[Hashable, float] = field(default_factory=dict)

    def seconds(self, fact: Hashable) -> float:
        """Time since a fact was first asked for, seconds."""
        return self.clock() - self._since.setdefault(fact, self.clock())

    def keep(self, facts: Iterable[Hashable]) -> None:
        """Forget all facts but these."""
        kept = set(facts)
        self._since = {fact: since for fact, since in self._since.items() if fact in kept}


@dataclass
class StallDetector:
    """How long rank 0's progress has stood still.

    A pod that could never be reached tells nothing (a NetworkPolicy may be in the way), so the clock starts with the
    first answer of an attempt, or with an answer that the status remembers.
    """

    clock: Clock = time.monotonic
    _attempt: int = -1
    _mark: object = None
    _since: float | None = None

    def stalled_seconds(self, status: DPOJobStatus, read: Progress | None) -> float | None:
        """Seconds without a change, or None when that can't be told. read: the newest answer, None when there was none."""
        now = self.clock()
        if status.attempt != self._attempt:
            self._attempt, self._mark, self._since = status.attempt, None, None
        if read is not None and read.attempt == status.attempt:
            mark = (read.phase, read.step, read.last_step_at, read.activity)
            if mark != self._mark or self._since is None:
                self._mark, self._since = mark, now
        elif self._since is None and status.progress is not None and status.progress.attempt == status.attempt:
            self._since = now
        return None if self._since is None else now - self._since

    def reset(self) -> None:
        """Forget everything: not all ranks run."""
        self._attempt = -1


@dataclass(frozen=True)
class RefusedExpansion:
    """A claim that could not grow. It's tried again after a while: a StorageClass may have been changed."""

    size: str
    why: str
    at: float = field(default_factory=time.monotonic)

    @property
    def is_fresh(self) -> bool:
        """Whether it's too soon to ask again."""
        return time.monotonic() - self.at < EXPANSION_RETRY_SECONDS


@dataclass
class JobMemory:
    """Memory of one job.

    raw, seen: the last full look. refused: the API server's last refusal. written: resourceVersion of our last status.
    guards_at: when the guards were last looked at, 0 for never. dirty: something happened since the last full look. due: that look asked for another one.
    """

    uid: str = ""
    pods: Stopwatch = field(default_factory=Stopwatch)
    stall: StallDetector = field(default_factory=StallDetector)
    placing: Stopwatch = field(default_factory=Stopwatch)
    raw: dict[str, Any] | None = None
    seen: Observed | None = None
    looked_at: float = 0.0
    guards_at: float = 0.0
    refused: str = ""
    expansion: RefusedExpansion | None = None
    written: str = ""
    dirty: bool = True
    due: bool = True
