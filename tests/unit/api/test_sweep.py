"""The grid of a sweep, the spec of each leg, and which leg is exported."""

from typing import Any

import pytest

from dpo_operator.api.diagnosis import CODES
from dpo_operator.api.rules import resuming
from dpo_operator.api.rules import spec as rules
from dpo_operator.api.sweep.grid import leg_spec
from dpo_operator.api.sweep.report import LegReport, best, none_trained, why_best
from dpo_operator.api.types import DPOJob, DPOJobSpec
from tests.unit.planning.build import a_job

pytestmark = pytest.mark.unit

DATA = {"train": {"source": "t"}, "evalFraction": 0.1}


def a_sweep(**fields: Any) -> DPOJob:
    parts = {key: fields.pop(key) for key in ("adapter", "diagnosis") if key in fields}
    return a_job(data=DATA, sweep=fields, **parts)


def settings(spec: DPOJobSpec) -> tuple[Any, ...]:
    return spec.method.name.value, spec.adapter.rank, spec.method.beta, spec.learning_rate, spec.training.seed


def test_every_combination_is_a_leg_and_the_last_list_varies_fastest() -> None:
    job = a_sweep(beta=[0.1, 0.3], learningRate=[1e-6, 5e-7, 1e-5])
    sweep = job.spec.sweep
    assert sweep is not None
    assert sweep.legs == 6
    assert [settings(leg_spec(job.spec, number))[2:4] for number in range(1, 7)] == [
        (0.1, 1e-6), (0.1, 5e-7), (0.1, 1e-5), (0.3, 1e-6), (0.3, 5e-7), (0.3, 1e-5)
    ]  # fmt: skip
    assert sweep.label(6) == "beta 0.3, learningRate 1e-05"


def test_a_leg_is_a_job_without_a_sweep_and_all_else_stays() -> None:
    job = a_sweep(method=["ipo", "hinge"], adapterRank=[8], seed=[3], adapter={"type": "lora", "dropout": 0.1})
    leg = leg_spec(job.spec, 2)
    assert (leg.sweep, settings(leg)) == (None, ("hinge", 8, None, 5e-6, 3))
    assert leg.adapter.dropout == 0.1
    assert (leg.model, leg.data) == (job.spec.model, job.spec.data)
    assert leg_spec(job.spec, 0) is job.spec


@pytest.mark.parametrize("number", [-1, 3])
def test_there_is_no_other_leg(number: int) -> None:
    with pytest.raises(IndexError):
        leg_spec(a_sweep(beta=[0.1, 0.3]).spec, number)
    with pytest.raises(IndexError):
        leg_spec(a_job().spec, number)


def test_unhealthy_legs_are_ended_unless_the_sweep_says_otherwise() -> None:
    ended = leg_spec(a_sweep(beta=[0.1, 0.3]).spec, 1).diagnosis.stop_on
    assert set(ended) == CODES
    kept = a_sweep(beta=[0.1, 0.3], stopUnhealthy=False, diagnosis={"stopOn": ["Gibberish"]})
    assert leg_spec(kept.spec, 1).diagnosis.stop_on == ("Gibberish",)


def test_a_leg_that_breaks_a_rule_is_named_with_the_rule() -> None:
    job = a_sweep(method=["dpo", "ipo", "hinge"])
    assert rules.violations(job) == []
    smoothed = a_job(data=DATA, sweep={"method": ["dpo", "ipo", "hinge"]}, method={"labelSmoothing": 0.1})
    (message,) = rules.violations(smoothed)
    assert message.startswith("spec.sweep: leg 2 (method ipo) would not be a valid job: spec.method.labelSmoothing: ")


def test_another_grid_is_another_run() -> None:
    before = {"sweep": {"beta": [0.1, 0.3]}}
    assert resuming.changed(before, {"sweep": {"beta": [0.1]}}) == ["spec.sweep"]
    assert resuming.changed(before, {}) == ["spec.sweep"]


def a_leg(number: int, **figures: Any) -> LegReport:
    return LegReport(leg=number, **{"outcome": "Trained", "accuracy": 0.7, "drift": 0.2} | figures)


@pytest.mark.parametrize(
    ("legs", "chosen"),
    [
        # A larger margin says nothing: it grows with beta.
        ([a_leg(1, accuracy=0.8, margin=0.1), a_leg(2, accuracy=0.7, margin=9.0)], 1),
        ([a_leg(1), a_leg(2, drift=0.1), a_leg(3)], 2),
        ([a_leg(1), a_leg(2)], 1),
        ([a_leg(1, accuracy=None), a_leg(2, accuracy=0.1)], 2),
        ([a_leg(1, accuracy=1.0, outcome="Unhealthy"), a_leg(2)], 2),
        ([a_leg(1, accuracy=1.0, unhealthy=True), a_leg(2)], 2),
        ([a_leg(1, accuracy=1.0, unhealthy=True)], 1),
        ([a_leg(1, outcome="Unhealthy")], None),
        ([], None),
    ],
)
def test_the_best_leg_is_exported(legs: list[LegReport], chosen: int | None) -> None:
    found = best("eval_reward_accuracy", legs)
    assert (found.leg if found else None) == chosen


def test_less_loss_is_better() -> None:
    legs = [a_leg(1, loss=0.6, accuracy=0.9), a_leg(2, loss=0.5)]
    assert best("eval_loss", legs) == legs[1]
    assert why_best("eval_loss", legs[1]) == "the best by eval_loss"


def test_a_choice_without_a_figure_is_not_called_the_best() -> None:
    found = best("eval_loss", [a_leg(1, loss=None), a_leg(2, loss=None)])
    assert found is not None
    assert why_best("eval_loss", found) == "the first, because no healthy leg has an eval_loss"


def test_a_sweep_without_a_healthy_leg_says_what_was_found_in_each() -> None:
    legs = [a_leg(1, settings="beta 0.1", findings=("Gibberish",), steps=5), a_leg(2, settings="beta 0.3", steps=3)]
    words = none_trained(legs)
    assert "leg 1 (beta 0.1): Gibberish at step 5; leg 2 (beta 0.3): not finite at step 3" in words
    assert "legs/" in words
