"""A run that was stopped and resumed gives the losses of one that never stopped."""

import shutil
from pathlib import Path

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import a_job, make_model, some_pairs, train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = [pytest.mark.numerics, pytest.mark.fault(32)]

PAIRS, STEPS = 21, 9
LORA = {"type": "lora", "rank": 4, "alpha": 16, "dropout": 0.2, "targetModules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora with dropout"])
def test_stopped_by_one_rank_and_resumed(tmp_path: Path, adapter: dict | None):
    straight, broken = WorkDir(tmp_path / "straight"), WorkDir(tmp_path / "broken")
    some_pairs(PAIRS).save(straight.train_data)
    on_ranks(1, make_model, straight.model)
    shutil.copytree(straight.root, broken.root)
    document = a_job(maxSteps=STEPS, gradientCheckpointing=True)
    if adapter:
        document["spec"]["adapter"] = adapter

    whole = on_ranks(2, train_on_rank, document, straight.root)
    # Rank 1 alone gets the signal, in the middle of the second epoch; both save and stop after the same step.
    first = on_ranks(2, train_on_rank, document, broken.root, 1, (1, 3))
    assert [rank["status"] for rank in first] == ["Stopped", "Stopped"]
    assert [line["step"] for line in first[0]["steps"]] == [1, 2, 3, 4]
    second = on_ranks(2, train_on_rank, document, broken.root, 2)
    assert [rank["status"] for rank in second] == ["Succeeded", "Succeeded"]

    keys = ("step", "loss", "rewards/margins", "logps/chosen", "grad_norm", "learning_rate", "epoch")
    expected = [[line[key] for key in keys] for line in whole[0]["steps"]]
    assert [[line[key] for key in keys] for line in second[0]["steps"]] == expected

    # Nothing is left to do for a third attempt.
    third = on_ranks(2, train_on_rank, document, broken.root, 3)
    assert [line["step"] for line in third[0]["steps"]] == list(range(1, STEPS + 1))


def test_the_alignment_of_memory_changes_no_product():
    """MKL's own choice of kernels gives up to a dozen different results for these."""
    assert on_ranks(1, _distinct_products) == [[1, 1, 1]]


def _distinct_products() -> list[int]:
    import torch

    from dpo_trainer.distributed.world import join_world

    join_world("cpu")
    torch.manual_seed(0)

    def at(place: int, numbers: torch.Tensor) -> torch.Tensor:
        memory = torch.empty(numbers.numel() + 64)
        return memory[place : place + numbers.numel()].view(numbers.shape).copy_(numbers)

    counts = []
    for rows, inner, columns in ((1, 300, 97), (3, 40, 97), (17, 768, 3)):
        inputs, weights = torch.randn(rows, inner), torch.randn(columns, inner)
        products = [torch.nn.functional.linear(at(i, inputs), at(3 * i % 17, weights)) for i in range(17)]
        counts.append(len({product.numpy().tobytes() for product in products}))
    return counts
