"""The optimizer's settings, its state off the GPU, batches over any number of ranks, and seeds."""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.engine.test_engine import overflowing_update
from tests.numerics.jobs import a_job, make_model, plain_training, some_pairs, train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

PAIRS, STEPS = 13, 20
KEYS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "grad_norm")
SETTINGS = {
    "adamBeta1": 0.8, "adamBeta2": 0.95, "adamEpsilon": 1e-4, "weightDecay": 0.3, "minLearningRateRatio": 0.4,
    "maxGradNorm": 0.5, "globalBatchSize": 4, "gradientCheckpointing": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = WorkDir(tmp_path_factory.mktemp("optimizer"))
    some_pairs(PAIRS).save(work.train_data)
    on_ranks(1, make_model, work.model)
    return work.root


@pytest.fixture
def work(prepared: Path, tmp_path: Path) -> WorkDir:
    shutil.copytree(prepared, tmp_path / "run")
    return WorkDir(tmp_path / "run")


def final_weights(root: Path) -> dict[str, np.ndarray]:
    from dpo_trainer.checkpoint.full import open_newest

    found, _ = open_newest(WorkDir(root).checkpoints)
    return {name: found.tensor(name).numpy() for name in found.manifest.parameters}


@pytest.fixture(scope="module")
def plain(prepared: Path) -> dict[str, Any]:
    """20 steps of torch.optim.AdamW with the same settings in one process."""
    document = a_job(maxSteps=STEPS, **SETTINGS)
    [run] = on_ranks(1, plain_training, document, WorkDir(prepared).model, some_pairs(PAIRS), STEPS)
    return run


@pytest.mark.parametrize("offload", ["none", pytest.param("cpu", marks=pytest.mark.exhaustive)])
def test_training_with_any_settings_equals_torchs_adamw(work: WorkDir, plain: dict[str, Any], offload: str):
    got = on_ranks(2, train_on_rank, a_job(maxSteps=STEPS, offload=offload, **SETTINGS), work.root)[0]
    for line, step in zip(got["steps"], plain["steps"], strict=True):
        assert [line[key] for key in KEYS] == pytest.approx([step[key] for key in KEYS], abs=1e-5, rel=1e-5)
    # The last step's rate is 0.4 of the peak and a little.
    assert 0.4 < got["steps"][-1]["learning_rate"] / 2e-3 < 0.42
    [weights] = on_ranks(1, final_weights, work.root)
    for name, value in plain["weights"].items():
        np.testing.assert_allclose(weights[name], value, atol=1e-5, err_msg=name)


def test_offloaded_state_survives_a_restart(work: WorkDir, plain: dict[str, Any]):
    document = a_job(maxSteps=STEPS, offload="cpu", **SETTINGS)
    assert on_ranks(2, train_on_rank, document, work.root, 1, (1, 6))[1]["status"] == "Stopped"
    resumed = on_ranks(2, train_on_rank, document, work.root, 2)[0]
    assert len(resumed["steps"]) == STEPS
    for line, step in zip(resumed["steps"], plain["steps"], strict=True):
        assert [line[key] for key in KEYS] == pytest.approx([step[key] for key in KEYS], abs=1e-5, rel=1e-5)


def test_an_infinite_gradient_changes_no_weight_with_offload_either(work: WorkDir):
    for first, second, same in on_ranks(2, overflowing_update, a_job(offload="cpu"), work.model):
        assert first is None
        assert same
        assert second is not None


def test_any_number_of_ranks_takes_the_same_steps(work: WorkDir):
    # 7 pairs in micro-batches of 2: three ranks have 3, 2 and 2 of them, two ranks 4 and 3.
    document = a_job(maxSteps=3, globalBatchSize=7, microBatchSize=2, warmupRatio=0.0)
    curves = {}
    for ranks in (1, 2, 3):
        root = work.root.with_name(f"on {ranks}")
        shutil.copytree(work.root, root)
        curves[ranks] = on_ranks(ranks, train_on_rank, copy.deepcopy(document), root)[0]["steps"]
    for ranks in (2, 3):
        for line, expected in zip(curves[ranks], curves[1], strict=True):
            assert [line[key] for key in KEYS] == pytest.approx([expected[key] for key in KEYS], abs=1e-5), ranks
    assert curves[1][2]["loss"] != pytest.approx(curves[1][0]["loss"], abs=1e-3)


def test_equal_seeds_give_equal_runs_and_different_seeds_do_not(work: WorkDir):
    curves = []
    for number, seed in enumerate((7, 7, 8)):
        root = work.root.with_name(f"run {number}")
        shutil.copytree(work.root, root)
        document = a_job(maxSteps=3, globalBatchSize=4, seed=seed, learningRate=2e-2, warmupRatio=0.0)
        document["spec"]["adapter"] = {"type": "lora", "rank": 4, "dropout": 0.3}
        lines = on_ranks(1, train_on_rank, document, root)[0]["steps"]
        curves.append([[line[key] for key in KEYS] for line in lines])
    assert curves[1] == [pytest.approx(line, rel=1e-6, abs=1e-9) for line in curves[0]]
    assert abs(curves[2][2][0] - curves[0][2][0]) > 1e-3
