"""Learning rates against the schedules of transformers, step by step."""

import pytest
import torch
from transformers.optimization import get_scheduler

from dpo_trainer.schedule import learning_rate, warmup_steps

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


def test_warm_up_counts_a_part_of_a_step_as_one():
    assert [warmup_steps(0.1, total) for total in (1, 10, 11, 100)] == [0, 1, 2, 10]


@pytest.mark.parametrize("ratio", [0.1, 1.0])
def test_a_run_of_one_step_trains(ratio: float):
    warmup = warmup_steps(ratio, 1)
    assert learning_rate(1, peak=5e-7, total_steps=1, warmup=warmup, shape="cosine") == 5e-7
