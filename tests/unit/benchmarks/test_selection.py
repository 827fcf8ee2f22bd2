"""The benchmark of selection: its jobs keep the rules and take equal steps, and its table says what was measured."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.selection import ARMS, BATCH, Result, document, error, table
from dpo_operator.api.rules import spec as rules
from dpo_operator.api.rules import support
from dpo_operator.api.types import DPOJob
from dpo_trainer.batches.plans import plan_of

pytestmark = pytest.mark.unit


def steps_of(arm: str, pairs: int) -> int:
    job = DPOJob.model_validate(document(arm, Path("/model"), Path("/data"), pairs=pairs, seed=0))
    assert rules.violations(job) == []
    assert support.unsupported(job.spec) == []
    training = job.spec.training
    return plan_of(job.spec, pairs).total_steps(epochs=training.epochs, max_steps=training.max_steps)


@pytest.mark.parametrize("pairs", [96, 304, 608])
def test_arms_take_equally_many_steps(pairs: int) -> None:
    steps = {arm: steps_of(arm, pairs) for arm in ARMS}
    chosen = {steps[arm] for arm in ("random", "hard", "trimmed", "easy", "small gap")}
    assert len(chosen) == 1
    assert steps["none"] < chosen.pop() < steps["all"] == -(-pairs // BATCH)


def test_the_error_is_that_of_seeds_where_it_is_larger() -> None:
    one = np.array([1.0, -1.0] * 50)
    assert error([one]) == error([one, one]) * np.sqrt(2) == pytest.approx(0.1)
    assert error([one + 1, one - 1]) == pytest.approx(1.0)


def test_the_table_pairs_arms_by_seed_and_says_how_many_there_are() -> None:
    def a_result(reward: float) -> Result:
        return Result(
            steps=26, chosen=200, flipped=0.25, accuracy=0.75, rewards=(reward, reward + 1), kl=3.0, extra=0.1
        )

    found = {(0.0, "random"): {0: a_result(1.0)}, (0.0, "hard"): {0: a_result(0.5), 1: a_result(3.5)}}
    console = Console(width=200, record=True)
    console.print(table(found))
    lines = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
    # A seed that random pairs were not trained on yet is in the mean, and not in the difference.
    assert any(
        line.startswith("0% hard 2 26 200 0.25 0.75") and "2.50 ± " in line and "-0.50 ± 0.00" in line for line in lines
    )
    assert any(line.startswith("0% random 1 26") for line in lines)
