"""Which evaluation is the best, and when waiting for a better one ends."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_operator.api.training import EarlyStopping
from dpo_trainer.telemetry.selection import METRICS, cost
from dpo_trainer.training.early_stopping import Verdict, judge

pytestmark = pytest.mark.unit


def after(*costs: float | None, patience: int = 2, min_delta: float = 0.1) -> Verdict:
    """The verdict on costs of evaluations at steps 10, 20, 30, …"""
    rule = EarlyStopping(patience=patience, min_delta=min_delta)
    return judge([(10 * number, value) for number, value in enumerate(costs, start=1)], rule)


def test_the_metrics_are_those_that_a_job_may_name():
    assert set(METRICS) == set(EarlyStopping.model_fields["metric"].annotation.__args__)  # type: ignore[union-attr]


def test_less_cost_is_better_whatever_the_metric():
    metrics = {"loss": 0.6, "rewards/margins": 0.4, "rewards/accuracies": 0.75}
    assert cost("eval_loss", metrics) == 0.6
    assert cost("eval_reward_margin", metrics) == -0.4
    assert cost("eval_reward_accuracy", metrics) == -0.75


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", METRICS)
def test_a_metric_that_is_not_finite_has_no_cost(name: str, value: float):
    assert cost(name, {METRICS[name][0]: value}) is None


def test_the_first_evaluation_is_an_improvement():
    assert after(5.0) == Verdict(improved=True, stop=False, best_step=10)


def test_waiting_ends_after_as_many_evaluations_as_the_rule_says():
    assert not after(1.0, 1.0, patience=2).stop
    assert after(1.0, 1.0, 1.0, patience=2).stop
    assert not after(1.0, 1.0, 1.0, patience=3).stop
    assert after(1.0, 1.0, patience=1).stop
    # Progress in between starts the waiting again.
    assert not after(1.0, 1.0, 0.5, 0.5, patience=2).stop
    assert after(1.0, 1.0, 0.5, 0.5, 0.5, patience=2) == Verdict(improved=False, stop=True, best_step=30)


def test_a_gain_of_just_min_delta_is_progress():
    assert after(1.0, 0.5, min_delta=0.5).best_step == 20
    assert after(1.0, 0.51, min_delta=0.5).best_step == 10
    # With 0 any gain is, but standing still is none.
    assert after(1.0, 0.999, min_delta=0.0).best_step == 20
    assert after(1.0, 1.0, min_delta=0.0).best_step == 10


def test_a_small_gain_is_kept_but_does_not_end_the_waiting():
    assert after(1.0, 0.98, 0.97, patience=2) == Verdict(improved=True, stop=True, best_step=10)


def test_small_gains_add_up():
    # No step gains 0.1, but the third evaluation is 0.12 better than the first.
    assert after(1.0, 0.94, 0.88, patience=2) == Verdict(improved=True, stop=False, best_step=30)
    # The next 0.1 is counted from there.
    assert after(1.0, 0.94, 0.88, 0.8, 0.79, patience=2) == Verdict(improved=True, stop=True, best_step=30)


def test_an_evaluation_must_beat_all_before_to_be_an_improvement():
    assert not after(1.0, 2.0, 1.5).improved
    assert not after(1.0, 2.0, 1.0).improved


def test_an_evaluation_without_a_cost_is_never_better_and_hides_nothing():
    assert after(None) == Verdict(improved=False, stop=False, best_step=10)
    assert after(None, None) == Verdict(improved=False, stop=True, best_step=10)
    assert after(None, 3.0) == Verdict(improved=True, stop=False, best_step=20)
    assert after(1.0, None, 0.8) == Verdict(improved=True, stop=False, best_step=30)
    assert after(1.0, None, 1.1) == Verdict(improved=False, stop=True, best_step=10)


def test_without_a_rule_a_run_never_stops_and_still_has_a_best_evaluation():
    evaluations = [(10, 1.0), (20, 0.99), *((step, 2.0) for step in range(30, 3000, 10))]
    assert judge(evaluations, None) == Verdict(improved=False, stop=False, best_step=20)
    assert judge(evaluations[:2], None).improved


def naive(costs: list[float | None], patience: int, min_delta: float) -> tuple[bool, bool, int]:
    """The same in the words of the specification, looking back from each evaluation."""
    finite = [value for value in costs if value is not None]
    improved = costs[-1] is not None and finite.count(costs[-1]) == 1 and min(finite) == costs[-1]
    progress: list[int] = []
    for number, value in enumerate(costs):
        if value is None:
            continue
        if not progress:
            progress.append(number)
            continue
        last = costs[progress[-1]]
        assert last is not None
        if last > value and last - value >= min_delta:
            progress.append(number)
    waited = len(costs) - 1 - progress[-1] if progress else len(costs)
    return improved, waited >= patience, 10 * ((progress[-1] if progress else 0) + 1)


@given(
    st.lists(st.one_of(st.none(), st.integers(-20, 20).map(lambda x: x / 4)), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.25, 0.5, 2.0]),
)
@example([None, 1.0, None, 1.0], 2, 0.0)
def test_the_verdict_equals_a_plain_implementation(costs: list[float | None], patience: int, min_delta: float):
    found = after(*costs, patience=patience, min_delta=min_delta)
    assert (found.improved, found.stop, found.best_step) == naive(costs, patience, min_delta)


@given(st.lists(st.one_of(st.none(), st.floats(-10, 10)), min_size=1, max_size=8))
def test_a_resumed_run_judges_as_if_it_had_never_stopped(costs: list[float | None]):
    # A checkpoint keeps the evaluations as JSON.
    evaluations = [(number, value) for number, value in enumerate(costs, start=1)]
    kept = json.loads(json.dumps(evaluations, allow_nan=False))
    rule = EarlyStopping(patience=2, min_delta=0.5)
    assert judge([(step, value) for step, value in kept], rule) == judge(evaluations, rule)
