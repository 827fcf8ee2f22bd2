"""Adapters under ZeRO-3: they start as no change, they are what is trained, and the base stays as it was."""

from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import a_job, make_model, some_pairs, train_on_rank
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = pytest.mark.numerics


def with_lora(**adapter: Any) -> dict[str, Any]:
    document = a_job(maxSteps=4, gradientCheckpointing=True, learningRate=2e-2)
    document["spec"]["adapter"] = {"type": "lora", "rank": 4, "alpha": 16, **adapter}
    return document


@pytest.fixture
def work(tmp_path: Path) -> WorkDir:
    work = WorkDir(tmp_path)
    some_pairs(9).save(work.train_data)
    on_ranks(1, make_model, work.model)
    return work


def adapters(work: WorkDir) -> dict[str, float]:
    """Largest absolute value of every parameter in the newest checkpoint."""
    from dpo_trainer.checkpoint.full import open_newest

    found, _ = open_newest(work.checkpoints)
    return {name: found.tensor(name).abs().max().item() for name in found.manifest.parameters}


def base_after_training(document: dict[str, Any], model: Path, pairs: int) -> tuple[bool, bool]:
    """Whether the frozen weights are bit for bit those of the file after some updates, and the adapters are not zero."""
    import deepspeed
    import torch
    from safetensors.torch import load_file

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.batches.batch import collate
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine

    world = join_world("cpu")
    engine = Engine(DPOJob.model_validate(document).spec, model, world)
    batch = collate(some_pairs(pairs), [world.rank])
    for _ in range(3):
        engine.backward(-engine.score(batch).answers[0, 0, 0], last=True)
        engine.step(1e-2)
    file, same, moved = load_file(model / "model.safetensors"), True, True
    for name, parameter in engine.module.model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if "lora_" in name:
                moved &= bool(parameter.abs().max() > 0)
            else:
                plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
                same &= torch.equal(parameter, file[plain])
    return same, moved


def test_only_the_adapters_are_trained_and_saved(work: WorkDir):
    document = with_lora(targetModules=["q_proj", "v_proj"])
    ranks = on_ranks(2, train_on_rank, document, work.root)
    assert ranks[0]["warnings"] == []
    assert ranks[0]["steps"][0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    [found] = on_ranks(1, adapters, work)
    assert sorted({name.split(".")[-3] for name in found}) == ["lora_A", "lora_B"]
    assert len(found) == 2 * 2 * 2  # A and B, of two projections, in two layers
    # B starts at zero; that it no longer is shows that its gradient arrived.
    assert min(found.values()) > 0


def test_the_base_weights_do_not_change(work: WorkDir):
    document = with_lora(targetModules=["all-linear"])
    assert on_ranks(2, base_after_training, document, work.model, 9) == [(True, True)] * 2


def test_an_unknown_target_lists_the_modules(work: WorkDir):
    with pytest.raises(RankFailed) as caught:
        on_ranks(1, train_on_rank, with_lora(targetModules=["q_proj", "c_attn"]), work.root)
    message = str(caught.value)
    assert caught.value.kind == "TrainerError"
    assert "no module c_attn" in message
    assert (
        "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj; name some of them, or use all-linear" in message
    )
