"""Learning rates against the schedules of transformers, step by step."""

from typing import Any

import pytest
import torch
from transformers.optimization import get_scheduler

from dpo_trainer.training.schedule import learning_rate, warmup_steps

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("total", [1, 2, 7, 20])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("shape", "theirs"), [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")]
)
def test_equal_to_transformers(total: int, ratio: float, shape: str, theirs: str):
    warmup = warmup_steps(ratio, total)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    for step in range(1, total + 1):
        used = optimizer.param_groups[0]["lr"]
        mine = learning_rate(step, peak=3e-4, total_steps=total, warmup=warmup, shape=shape)  # type: ignore[arg-type]
        assert mine == pytest.approx(used, rel=1e-12, abs=1e-18), step
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("shape", "theirs", "options"),
    [
        ("cosine", "cosine_with_min_lr", lambda floor: {"min_lr_rate": floor}),
        ("linear", "polynomial", lambda floor: {"power": 1.0, "lr_end": 3e-4 * floor}),
    ],
    ids=["cosine", "linear"],
)
def test_the_lowest_rate_equals_transformers(floor: float, shape: str, theirs: str, options: Any):
    if shape == "linear" and floor == 1.0:
        theirs, options = "constant_with_warmup", lambda _: {}  # theirs refuses an end that is no lower than the peak
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = get_scheduler(
        theirs, optimizer, num_warmup_steps=3, num_training_steps=20, scheduler_specific_kwargs=options(floor)
    )
    for step in range(1, 21):
        used = optimizer.param_groups[0]["lr"]
        mine = learning_rate(step, peak=3e-4, total_steps=20, warmup=3, shape=shape, floor=floor)  # type: ignore[arg-type]
        assert mine == pytest.approx(used, rel=1e-12, abs=1e-18), step
        optimizer.step()
        scheduler.step()


def test_warm_up_counts_a_part_of_a_step_as_one():
    assert [warmup_steps(0.1, total) for total in (1, 10, 11, 100)] == [0, 1, 2, 10]


@pytest.mark.parametrize("ratio", [0.1, 1.0])
def test_a_run_of_one_step_trains(ratio: float):
    warmup = warmup_steps(ratio, 1)
    assert learning_rate(1, peak=5e-7, total_steps=1, warmup=warmup, shape="cosine") == 5e-7
