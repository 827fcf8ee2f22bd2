"""Options of what ranks send one another: a copy of the weights in each node, and gradients in 16 bits."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.interruptions import STEPS, folder, job
from tests.numerics.jobs import train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics


def a_document(**training: Any) -> dict[str, Any]:
    """Four ranks, two in each of two nodes, on CPUs."""
    document = job(every_steps=4, precision="bf16", **training)
    document["spec"]["training"]["globalBatchSize"] = 4
    document["spec"] |= {"nodes": 2, "gpusPerNode": 2}
    return document


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[WorkDir, list[dict[str, Any]]]:
    work = folder(tmp_path_factory.mktemp("plain"))
    return work, on_ranks(4, train_on_rank, a_document(), work.root)[0]["steps"]


def figures(steps: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(step["loss"], step["grad_norm"]) for step in steps]


def test_a_copy_in_each_node_gives_the_same_numbers_and_resumes(
    plain: tuple[WorkDir, list[dict[str, Any]]], tmp_path: Path
):
    root = shutil.copytree(plain[0].root, tmp_path / "run")
    for name in ("checkpoints", "reference"):
        shutil.rmtree(root / name)
    (root / "metrics.jsonl").unlink()
    document = a_document(hierarchicalPartition=True)
    [whole] = on_ranks(4, with_copies, document, root)[:1]
    assert whole["copies"] > 0
    assert figures(whole["steps"]) == figures(plain[1])

    # The last two steps again, with and without copies, from a checkpoint that was written with them.
    shutil.rmtree(root / "checkpoints" / f"step-{STEPS:08d}")
    other = shutil.copytree(root, tmp_path / "other")
    again = on_ranks(4, with_copies, document, root, 2)[0]["steps"]
    without = on_ranks(4, train_on_rank, a_document(), other, 2)[0]["steps"]
    assert figures(again) == figures(without) == figures(plain[1])


def with_copies(document: dict[str, Any], root: Path, attempt: int = 1) -> dict[str, Any]:
    """One rank; also the parameters of which the node had a copy at some time."""
    from dpo_trainer.engine.engine import Engine

    copies, score = 0, Engine.score

    def counted(self: Engine, *args: Any, **settings: Any) -> Any:
        nonlocal copies
        copies = max(copies, sum(getattr(p, "ds_secondary_tensor", None) is not None for p in self.module.parameters()))
        return score(self, *args, **settings)

    Engine.score = counted  # type: ignore[method-assign]
    return train_on_rank(document, root, attempt) | {"copies": copies}


def test_gradients_in_16_bits_are_near_those_in_32(plain: tuple[WorkDir, list[dict[str, Any]]], tmp_path: Path):
    work = folder(tmp_path / "run")
    found = on_ranks(4, train_on_rank, a_document(gradientReduction="bf16"), work.root)[0]["steps"]
    assert figures(found) != figures(plain[1])
    assert [step["loss"] for step in found] == pytest.approx([step["loss"] for step in plain[1]], abs=5e-3)
