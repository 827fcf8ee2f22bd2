"""The auxiliary loss of routers: TRL's figure and gradient at every step, for any number of ranks and micro-batches."""

from pathlib import Path

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import a_job, some_pairs, train_on_rank
from tests.numerics.losses.test_dpo_against_trl import EPOCHS, trl_training
from tests.numerics.model.test_expert_adapters import make_moe
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

PAIRS, STEPS = 16, 8
COEFFICIENT = 0.5
LORA = {"type": "lora", "rank": 4, "alpha": 8, "targetModules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("lora", [None, pytest.param(LORA, marks=pytest.mark.exhaustive)], ids=["full", "lora"])
def test_the_routers_loss_equals_trl(tmp_path: Path, lora: dict[str, object] | None) -> None:
    work = WorkDir(tmp_path / "ours")
    some_pairs(PAIRS).save(work.train_data)
    on_ranks(1, make_moe, work.model, "mixtral")
    # TRL's is of one forward pass, so that all pairs of a step go through one.
    settings = {
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "router_aux_loss_coef": COEFFICIENT,
    }  # fmt: skip
    [theirs] = on_ranks(1, trl_training, work.model, some_pairs(PAIRS), tmp_path / "trl", lora, None, None, settings)
    assert len(theirs) == STEPS
    of_step = {"routerAuxLoss": COEFFICIENT, "epochs": EPOCHS, "shuffle": False, "learningRate": 2e-2 if lora else 2e-3}
    for ranks, way in (
        (1, {"microBatchSize": 3, "packing": "off"}),
        (2, {"microBatchSize": 4, "packing": "shared", "gradientCheckpointing": True}),
    ):
        document = a_job(**of_step, **way)
        if lora:
            document["spec"]["adapter"] = lora
        ours = on_ranks(ranks, train_on_rank, document, tmp_path / "ours")[0]["steps"]
        assert len(ours) == STEPS
        for mine, trl in zip(ours, theirs, strict=True):
            assert mine["aux_loss"] == pytest.approx(trl["aux_loss"], abs=1e-4), (ranks, mine["step"])
            # TRL's loss has the term in it, ours is that of the pairs.
            assert mine["loss"] + COEFFICIENT * mine["aux_loss"] == pytest.approx(trl["loss"], abs=1e-4)
            assert mine["grad_norm"] == pytest.approx(trl["grad_norm"], rel=2e-3), (ranks, mine["step"])
            assert mine["rewards/margins"] == pytest.approx(trl["rewards/margins"], abs=1e-4)
        assert ours[-1]["aux_loss"] < ours[0]["aux_loss"]
        for name in ("checkpoints", "metrics.jsonl"):
            path = tmp_path / "ours" / name
            path.rename(tmp_path / f"{name}-{ranks}")
