"""How soon the operator notices and mends."""

from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from dpo_operator.metrics.timings import Timings
from dpo_operator.planning.transitions import Moment, completed, failed, suspended
from dpo_operator.queueing.key import Key
from tests.unit.planning.build import NOON, a_child, a_pod, a_status, a_view, decide, ended

pytestmark = pytest.mark.unit

KEY = Key("default", "pairs")


class Watched:
    """Timings by a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.registry = CollectorRegistry()
        self.timings = Timings(self.registry, clock=lambda: self.now)

    def written(self, before, after, view=None, *, now=NOON):
        self.timings.written(KEY, before, after, view, now)

    def of(self, name: str) -> tuple[float, float]:
        """Number and sum of what was observed."""
        values = [self.registry.get_sample_value(f"dpojob_{name}_seconds_{part}") for part in ("count", "sum")]
        return values[0] or 0.0, values[1] or 0.0


CRASHED = a_view(a_child(), a_pod(0), ended(1, 70, at="11:59:58"))
NEXT = a_view(a_child(attempt=2), a_pod(0, attempt=2), a_pod(1, attempt=2))


def test_from_the_decision_to_the_pods_that_run_again():
    watched, before = Watched(), a_status()
    restarting = decide(before, CRASHED).status
    watched.written(before, restarting, CRASHED)
    watched.now += 12.5
    half = decide(restarting, a_view(a_child(attempt=2), a_pod(0, attempt=2))).status
    watched.written(restarting, half)
    assert watched.of("recovery") == (0, 0)
    again = decide(half, NEXT).status
    watched.written(half, again, NEXT)
    assert watched.of("recovery") == (1, 12.5)
    watched.written(again, again, NEXT)
    assert watched.of("recovery") == (1, 12.5)


def test_a_decision_of_an_earlier_operator_is_timed_by_the_status():
    restarting = decide(a_status(), CRASHED).status
    again = decide(restarting, NEXT).status
    watched = Watched()
    watched.written(restarting, again, NEXT, now=NOON + timedelta(seconds=40))
    assert watched.of("recovery") == (1, 40)


@pytest.mark.parametrize(
    "end", [lambda s: suspended(s, Moment(NOON, 1)), lambda s: failed(s, "X", "x", Moment(NOON, 1))]
)
def test_what_never_runs_again_is_no_recovery(end):
    watched = Watched()
    restarting = decide(a_status(), CRASHED).status
    watched.written(restarting, end(restarting))
    assert watched.of("recovery") == (0, 0)


@pytest.mark.parametrize(
    ("pods", "seconds"),
    [
        ((a_pod(0), ended(1, 70, at="11:59:58")), 2.0),
        ((ended(0, 75, at="11:59:59"), ended(1, 70, at="11:59:57")), 3.0),
        ((ended(0, 0, at="11:59:50"), ended(1, 0, at="11:59:59")), 1.0),
        # The node's clock is ahead.
        ((a_pod(0), ended(1, 70, at="12:00:05")), 0.0),
    ],
    ids=["a failure", "the first of two", "the last success", "another clock"],
)
def test_from_a_containers_end_to_the_status(pods, seconds):
    watched, before = Watched(), a_status()
    view = a_view(a_child(), *pods)
    watched.written(before, decide(before, view).status, view)
    assert watched.of("detection") == (1, seconds)


def test_what_no_container_ended_is_not_detected():
    watched = Watched()
    gone = decide(a_status(), a_view()).status
    assert gone.restarts == 1
    watched.written(a_status(), gone, a_view())
    watched.written(gone, gone, a_view())
    done = completed(a_status("export"), Moment(NOON, 1))
    watched.written(a_status("export"), done, a_view())
    assert watched.of("detection") == (0, 0)
