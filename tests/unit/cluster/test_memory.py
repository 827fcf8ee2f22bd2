"""Clocks of the operator itself."""

import pytest

from dpo_operator.cluster.memory import StallDetector
from dpo_operator.cluster.stopwatch import Stopwatch
from dpo_operator.planning.progress import progress_status
from tests.unit.planning.build import NOON, a_reading, a_status

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


def test_stall_is_the_time_since_the_last_change():
    clock = Clock()
    stall = StallDetector(clock)
    assert stall.stalled_seconds(a_status(), a_reading(1)) == 0
    clock.now += 10
    assert stall.stalled_seconds(a_status(), a_reading(1)) == 10
    # A rank that stopped answering is as silent as one that repeats itself.
    assert stall.stalled_seconds(a_status(), None) == 10
    assert stall.stalled_seconds(a_status(), a_reading(2)) == 0
    clock.now += 10
    # Work before the first step has no number but a time.
    assert stall.stalled_seconds(a_status(), a_reading(2, last_step_at=1.0)) == 0


def test_pod_that_never_answered_says_nothing_about_a_hang():
    clock = Clock()
    stall = StallDetector(clock)
    for _ in range(3):
        assert stall.stalled_seconds(a_status(), None) is None
        clock.now += 1000


def test_new_attempt_starts_the_clock_anew():
    clock = Clock()
    stall = StallDetector(clock)
    stall.stalled_seconds(a_status(), a_reading(1))
    clock.now += 100
    assert stall.stalled_seconds(a_status(attempt=2), None) is None
    assert stall.stalled_seconds(a_status(attempt=2), a_reading(1, attempt=2)) == 0


def test_restarted_operator_knows_from_the_status_that_the_rank_answered_before():
    clock = Clock()
    stall = StallDetector(clock)
    status = a_status(progress=progress_status(a_reading(7), NOON))
    assert stall.stalled_seconds(status, None) == 0
    clock.now += 300
    assert stall.stalled_seconds(status, None) == 300
