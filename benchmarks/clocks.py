"""Time of parts of a run, each without the parts inside of it."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any


class Clocks:
    """Exclusive times by name: while an inner part runs, the outer one's clock stands still."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = 0.0

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time put to an account."""

        def timed(*arguments: Any, **more: Any) -> Any:
            self._turn()
            self._stack.append(name)
            try:
                return function(*arguments, **more)
            finally:
                self._turn()
                self._stack.pop()

        return timed

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now
