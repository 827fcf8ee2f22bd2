"""How long facts have been seen."""

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

Clock = Callable[[], float]


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
