import pytest

from dpo_operator.api.rules.advice import advice
from dpo_operator.api.sweep.grid import largest_leg
from dpo_operator.sizing.export import Stored
from dpo_operator.sizing.legs import estimate
from tests.unit.planning.build import a_job

pytestmark = pytest.mark.unit

STORED = Stored(checkpoint=100.0, export=1000.0, memory=0.0)
GRID = {"beta": [0.1, 0.3], "seed": [1, 2]}


def a_spec(sweep=None, **parts):
    data = {"train": {"source": "t"}, "evalFraction": 0.1}
    return a_job(data=data, sweep=GRID if sweep is None else sweep, **parts).spec


def test_a_job_without_a_sweep_costs_nothing():
    assert estimate(a_job().spec, STORED) is None


def test_checkpoints_of_all_legs_stay():
    found = estimate(a_spec(), STORED)
    # Two checkpoints of two ranks in each leg.
    assert (found.legs, found.disk) == (4, 4 * 2 * 2 * 100)
    kept = estimate(a_spec(export={"checkpoint": "best"}, checkpoint={"keepBest": 3}), STORED)
    assert kept.disk == 4 * 5 * 2 * 100
    assert "4 trainings" in found.says


def test_memory_is_that_of_the_largest_adapter():
    spec = a_spec({"adapterRank": [8, 256, 64]}, adapter={"type": "lora"})
    assert largest_leg(spec).adapter.rank == 256
    assert largest_leg(a_job().spec) == a_job().spec


def test_advice_about_any_leg_is_given_once():
    spec = a_spec({"learningRate": [5e-7, 1e-2, 2e-2], "seed": [1, 2]})
    fields = [each.field for each in advice(spec) if "earning" in each.field]
    assert fields
    assert len(advice(spec)) == len(set(advice(spec)))
    assert not [each for each in advice(a_spec({"learningRate": [5e-7, 1e-6]})) if "earning" in each.field]
