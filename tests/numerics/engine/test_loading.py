"""Every rank reads its own slices of the weights, and no other's."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.numerics.jobs import a_job, make_model
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics


def load(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Load on one rank: what it holds that is not the files', elements read, weights gathered, and signs of life."""
    import deepspeed
    import torch

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine import loading
    from dpo_trainer.engine.engine import Engine
    from dpo_trainer.model.weight_files import WeightFiles

    found: dict[str, Any] = {"read": 0, "gathered": 0, "alive": 0}
    fill, enter = loading.fill_partition, deepspeed.zero.GatheredParameters.__enter__

    def counted(parameter: Any, whole: Any) -> None:
        found["read"] += loading.slice_of(whole, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])).numel()
        fill(parameter, whole)

    def entered(context: Any) -> Any:
        found["gathered"] += len(getattr(context, "params", ()))
        return enter(context)

    loading.fill_partition, deepspeed.zero.GatheredParameters.__enter__ = counted, entered
    alive: list[int] = []
    world = join_world("cpu")
    engine = Engine(DPOJob.model_validate(document).spec, folder, world, alive=alive.append)
    found["alive"] = len(alive)
    files = WeightFiles(folder)
    prefix = "" if "model.embed_tokens.weight" in files.names else "model."
    wrong = []
    for entry in engine.state().entries():
        kind, _, name = entry.name.partition("/")
        if kind == "fp32":
            whole = files.tensor(name.removeprefix(prefix))
            if not torch.equal(entry.read(), loading.slice_of(whole, world.rank, world.world_size)):
                wrong.append(name)
    return found | {"wrong": wrong, "held": engine.partition_report()["held"]}


@pytest.mark.parametrize("kind", ["untied", "tied", "old names"])
def test_two_ranks_read_half_of_the_weights_each(kind: str, tmp_path: Path):
    [elements] = on_ranks(1, make, tmp_path / "model", kind)
    ranks = on_ranks(2, load, a_job(), tmp_path / "model")

    assert [rank["wrong"] for rank in ranks] == [[], []]
    assert [rank["gathered"] for rank in ranks] == [0, 0]
    # Every number is read once.
    assert [rank["read"] for rank in ranks] == [elements / 2] * 2
    assert [rank["held"] for rank in ranks] == [elements / 2] * 2
    assert min(rank["alive"] for rank in ranks) >= 20


def make(folder: Path, kind: str) -> int:
    """Save a model; returns its elements. Files of older models have names without the transformer's prefix."""
    from safetensors.torch import load_file, save_file

    make_model(folder, tied=kind == "tied")
    weights = load_file(folder / "model.safetensors")
    if kind == "old names":
        renamed = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in weights.values())
