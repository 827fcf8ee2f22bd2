"""Time since facts were first observed."""

import pytest

from dpo_operator.queueing.stopwatch import Stopwatch

pytestmark = pytest.mark.unit


class Clock:
    """A clock that is set by hand, seconds."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_it_runs_from_the_first_query_of_a_fact_until_the_fact_is_dropped():
    clock = Clock()
    watch = Stopwatch(clock)
    assert watch.seconds("a") == 0
    clock.now += 5
    assert (watch.seconds("a"), watch.seconds("b")) == (5, 0)
    watch.keep(["b"])
    clock.now += 1
    assert (watch.seconds("a"), watch.seconds("b")) == (0, 1)
