"""Time since facts were first observed."""

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

Clock = Callable[[], float]


@dataclass
class Stopwatch:
    """Time since each fact was first observed, by the monotonic clock, because wall clocks can jump and differ."""

    clock: Clock = time.monotonic
    _since: dict[Hashable, float] = field(default_factory=dict)

    def seconds(self, fact: Hashable) -> float:
        """Time since a fact was first queried, seconds."""
        return self.clock() - self._since.setdefault(fact, self.clock())

    def keep(self, facts: Iterable[Hashable]) -> None:
        """Drop all facts but these."""
        kept = set(facts)
        self._since = {fact: since for fact, since in self._since.items() if fact in kept}
