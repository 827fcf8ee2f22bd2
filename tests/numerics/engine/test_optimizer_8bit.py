"""AdamW with 8-bit state (bitsandbytes) on ZeRO-3's partitions: it learns, and a checkpoint restores the same state."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import a_job, make_model, some_pairs, train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

STEPS = 12
JOB = a_job(maxSteps=STEPS, globalBatchSize=4, optimizer="adamw-8bit")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = WorkDir(tmp_path_factory.mktemp("8bit"))
    some_pairs(13).save(work.train_data)
    on_ranks(1, make_model, work.model)
    return work.root


@pytest.fixture(scope="module")
def straight(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("8bit") / "straight"
    shutil.copytree(prepared, root)
    return on_ranks(2, train_on_rank, JOB, root)[0]["steps"]


def round_trip(values: int) -> dict[str, Any]:
    """bitsandbytes' state after some real updates, before and after the conversion to float32; and its dtype."""
    import torch
    from bitsandbytes.optim import AdamW8bit

    from dpo_trainer.engine.eightbit import get_moment, is_8bit, set_moment

    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(values))
    optimizer = AdamW8bit([weight], lr=1e-2)
    for _ in range(5):
        weight.grad = torch.randn(values) * torch.rand(values) ** 8
        weight.grad[:256] = 0  # a block without any gradient has the scale 0
        optimizer.step()
    state = optimizer.state[weight]
    before = {name: value.clone() for name, value in state.items() if isinstance(value, torch.Tensor)}
    moments = {kind: get_moment(state, kind, 0, values).clone() for kind in ("exp_avg", "exp_avg_sq")}
    part = get_moment(state, "exp_avg", 300, 700).clone()
    for name in ("state1", "state2", "absmax1", "absmax2"):
        if name in state:
            state[name].zero_()
    for kind, moment in moments.items():
        set_moment(state, kind, moment)
    return {
        "8bit": is_8bit(optimizer) and not is_8bit(torch.optim.AdamW([weight])),
        "dtype": str(state["state1"].dtype),
        # What the first block's codes are times its scale of 0 means nothing.
        "codes": [torch.equal(state[name][256:], before[name][256:]) for name in ("state1", "state2")],
        "scales": [
            torch.allclose(state[name], before[name], rtol=1e-6, atol=0)
            for name in ("absmax1", "absmax2")
            if name in state
        ],
        "part": torch.equal(part, moments["exp_avg"][300:700]),
        "negative": bool((moments["exp_avg"] < 0).any()),
        "moved": bool(moments["exp_avg_sq"].max() > 0),
    }


@pytest.mark.parametrize(("values", "dtype"), [(70_001, "torch.uint8"), (1_000, "torch.float32")])
def test_a_state_is_the_same_after_float32(values: int, dtype: str):
    [found] = on_ranks(1, round_trip, values)
    assert found == {
        "8bit": True, "dtype": dtype, "codes": [True, True], "scales": [True, True] if values > 4096 else [],
        "part": True, "negative": True, "moved": True,
    }  # fmt: skip


def test_it_learns_as_with_float32_state(prepared: Path, straight: list[dict[str, Any]], tmp_path: Path):
    shutil.copytree(prepared, tmp_path / "run")
    document = {**JOB, "spec": {**JOB["spec"], "training": {**JOB["spec"]["training"], "optimizer": "adamw"}}}
    exact = on_ranks(2, train_on_rank, document, tmp_path / "run")[0]["steps"]
    assert exact[-1]["loss"] < exact[0]["loss"] - 0.1
    differences = [abs(line["loss"] - theirs["loss"]) for line, theirs in zip(straight, exact, strict=True)]
    assert max(differences) < 0.02
    # With the same state in all digits there would be no difference: the 8 bits are there.
    assert max(differences) > 1e-5


@pytest.mark.exhaustive
def test_a_resumed_run_equals_an_uninterrupted_one(prepared: Path, straight: list[dict[str, Any]], tmp_path: Path):
    root = tmp_path / "run"
    shutil.copytree(prepared, root)
    on_ranks(2, train_on_rank, JOB, root, 1, (1, 4))
    shutil.copytree(root, tmp_path / "alone")
    resumed = on_ranks(2, train_on_rank, JOB, root, 2)[0]["steps"]
    for line, theirs in zip(resumed, straight, strict=True):
        assert line["loss"] == pytest.approx(theirs["loss"], rel=1e-5, abs=1e-5)
    # One rank has other blocks: the state is quantized again, no worse than in each step.
    alone = on_ranks(1, train_on_rank, JOB, tmp_path / "alone", 2)[0]["steps"]
    assert [line["loss"] for line in alone] == pytest.approx([line["loss"] for line in straight], abs=0.02)


def without_package(document: dict[str, Any], root: Path) -> dict[str, Any]:
    import sys

    for name in ["bitsandbytes", *(name for name in sys.modules if name.startswith("bitsandbytes."))]:
        sys.modules[name] = None  # type: ignore[assignment]
    return train_on_rank(document, root)


def test_without_bitsandbytes_the_job_fails_with_a_message(prepared: Path, tmp_path: Path):
    shutil.copytree(prepared, tmp_path / "run")
    with pytest.raises(AssertionError, match=r"spec.training.optimizer: adamw-8bit needs the package bitsandbytes"):
        on_ranks(1, without_package, JOB, tmp_path / "run")
