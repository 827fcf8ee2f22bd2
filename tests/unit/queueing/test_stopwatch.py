"""Clocks of the operator itself."""

import pytest

from dpo_operator.queueing.stopwatch import Stopwatch

pytestmark = pytest.mark.unit


class Clock:
    """A clock that is set by hand, seconds."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_stopwatch_starts_when_a_fact_is_first_seen_and_forgets_what_is_gone():
    clock = Clock()
    watch = Stopwatch(clock)
    assert watch.seconds("a") == 0
    clock.now += 5
    assert (watch.seconds("a"), watch.seconds("b")) == (5, 0)
    watch.keep(["b"])
    clock.now += 1
    assert (watch.seconds("a"), watch.seconds("b")) == (0, 1)
