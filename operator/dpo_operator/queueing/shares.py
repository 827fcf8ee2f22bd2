"""Time that namespaces have had turns, and whether one may go before others that wait."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping

from dpo_operator.planning.gangs import YIELD_SECONDS
from dpo_operator.queueing.key import Key

# A turn shorter than this is not worth giving, seconds.
LEAST_SECONDS = 20.0
# Namespaces whose last turn is remembered. The one that is forgotten would have gone first anyway.
MAX_NAMESPACES = 10_000


class Shares:
    """Turns of the past, by namespace: while one namespace waits, every other one has at most YIELD_SECONDS of turns.

    So a gang waits for at most one whole turn of each other namespace, whatever their gangs do.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: dict[Key, float] = {}
        # Begin and end of the turns of each namespace.
        self._turns: dict[str, deque[tuple[float, float]]] = {}
        # End of the last turn of each namespace, the newest last.
        self._last: OrderedDict[str, float] = OrderedDict()

    def begin(self, key: Key) -> None:
        """A job has the turn, from now or already."""
        self._began.setdefault(key, self._clock())

    def end(self, key: Key) -> None:
        """A job no longer has the turn."""
        began = self._began.pop(key, None)
        if began is None:
            return
        self._turns.setdefault(key.namespace, deque()).append((began, self._clock()))
        self._last[key.namespace] = self._clock()
        self._last.move_to_end(key.namespace)
        while len(self._last) > MAX_NAMESPACES:
            self._last.popitem(last=False)

    def forget_before(self, oldest: float) -> None:
        """Drop turns that nobody who waits has waited for."""
        for namespace, turns in list(self._turns.items()):
            while turns and turns[0][1] <= oldest:
                turns.popleft()
            if not turns:
                del self._turns[namespace]

    def held_since(self, key: Key) -> float:
        """When the job got its present turn."""
        return self._began.get(key, self._clock())

    def last(self, namespace: str) -> float:
        """When the last turn of a namespace ended; minus infinity without one."""
        return self._last.get(namespace, float("-inf"))

    def left(self, namespace: str, waiting: Mapping[str, float]) -> float:
        """Seconds that the next turn, or the present one, of a namespace may take. waiting: since when each namespace waits."""
        others = [since for other, since in waiting.items() if other != namespace]
        if not others:
            return float("inf")
        oldest = min(others)
        used = sum(end - max(begin, oldest) for begin, end in self._turns.get(namespace, ()) if end > oldest)
        return YIELD_SECONDS - used

    def may_begin(self, namespace: str, waiting: Mapping[str, float]) -> bool:
        """Whether a namespace may have a turn now.

        The one that has waited longest always may: it has had no turn since the others began to wait.
        """
        return self.left(namespace, waiting) >= LEAST_SECONDS
