"""The benchmarks of the operator: what is computed from their figures, and names of the one that wants to be first."""

import pytest

from benchmarks.operator_fair import early
from benchmarks.operator_memory import Held, chart_limit

pytestmark = pytest.mark.unit

NOTHING = Held("nothing", 0, now=90, peak=100)


def test_memory_is_extrapolated_from_what_jobs_add():
    held = Held("finished", 500, now=100, peak=150)
    assert held.of_each_thousand(NOTHING) == 20
    # 50 MiB for 500 jobs, so 4,120 for 412 MiB.
    assert held.that_fit(NOTHING, limit=512) == 4120


def test_jobs_that_are_over_the_limit_fit_in_part():
    assert Held("largest", 75, now=300, peak=924).that_fit(NOTHING, limit=512) == 37


def test_the_limit_is_the_chart_s():
    assert 64 <= chart_limit() <= 4096


def test_a_later_name_comes_first():
    made = [early(number) for number in (0, 1, 9, 10, 999)]
    assert made == sorted(made, reverse=True)
