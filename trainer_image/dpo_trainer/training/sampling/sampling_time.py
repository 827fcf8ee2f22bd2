"""At which evaluations answers are sampled: as often as a small share of the run's time allows, and at three of them in any case."""

import time
from collections.abc import Callable

# Share of the run's time that sampling may take.
SHARE = 0.03
# The part of it that may be spent before the first step; the rest comes as training proceeds. Early answers are worth the most.
_EARLY = 0.4
# The first evaluation after this part of the steps has answers whatever they cost, as the start and the end have.
SOON = 0.2


class SamplingTime:
    """The decision of one process; rank 0's holds for all."""

    def __init__(
        self, total_steps: int, every: int, *, resumed_step: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """every: steps between evaluations. Training continues now, after resumed_step. clock: seconds."""
        self._total, self._every, self._from = total_steps, every, resumed_step
        self._clock, self._began = clock, clock()
        self._spent, self._last = 0.0, 0.0

    def is_certain(self, step: int) -> bool:
        """Whether answers are sampled after this step whatever they cost."""
        soon = -(-max(1, round(SOON * self._total)) // self._every) * self._every
        return step in (0, soon, self._total)

    def allows(self, step: int) -> bool:
        """Whether answers may be sampled after a step: with the last ones they stay within their share of the expected time.

        The first ones of a process are always taken: before, nobody knows what they cost.
        """
        done = step - self._from
        if self.is_certain(step) or not self._last or done <= 0:
            return True
        training = self._clock() - self._began - self._spent
        expected = training / done * (self._total - self._from)
        allowance = SHARE * expected * min(1.0, _EARLY + done / (self._total - self._from))
        return self._spent + 2 * self._last <= allowance

    def add(self, seconds: float) -> None:
        """Answers were sampled, in so many seconds."""
        self._spent, self._last = self._spent + seconds, seconds

    @property
    def last(self) -> float:
        """Seconds that the newest answers took; 0 before the first."""
        return self._last
