"""float16 with a loss scale on two ZeRO-3 ranks. DeepSpeed asks the CPU for float16 units; torch computes without them, too."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import a_job, make_model, some_pairs, train_on_rank
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = pytest.mark.numerics

STEPS = 9
KEYS = ("step", "loss", "rewards/margins", "grad_norm", "learning_rate")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = WorkDir(tmp_path_factory.mktemp("precision"))
    some_pairs(9).save(work.train_data)
    on_ranks(1, make_model, work.model)
    return work.root


@pytest.fixture
def work(prepared: Path, tmp_path: Path) -> WorkDir:
    shutil.copytree(prepared, tmp_path / "run")
    return WorkDir(tmp_path / "run")


def supported(answer: bool) -> None:
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    CPU_Accelerator.is_fp16_supported = lambda self: answer


def half(
    document: dict[str, Any], root: Path, first_scale: float | None = None, attempt: int = 1, stop_after: Any = None
) -> dict[str, Any]:
    """Train in float16. first_scale: of the loss, for a run from the start.

    Returns what train_on_rank does, and "overflows", "scales" after each attempt at a step, and "error".
    """
    from dpo_trainer.engine.loss_scale import LossScale
    from dpo_trainer.runtime.errors import TrainerError
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.training import build

    supported(True)
    seen: dict[str, Any] = {"overflows": 0, "scales": [], "error": None}

    class Watched(build.Engine):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if first_scale is not None:
                self.loss_scale = LossScale(first_scale)

        def step(self, learning_rate: float) -> float | None:
            norm = super().step(learning_rate)
            seen["scales"].append(self.loss_scale.factor)
            return norm

    def count(self: Any) -> None:
        seen["overflows"] += 1

    build.Engine = Watched  # type: ignore[misc]
    Telemetry.nonfinite_step = count  # type: ignore[method-assign]
    try:
        return {**train_on_rank(document, root, attempt, stop_after), **seen}
    except TrainerError as error:
        return {**seen, "error": (int(error.exit_code), str(error))}


def newest(root: Path) -> tuple[dict[str, Any], bool]:
    """State of the newest checkpoint, and whether it holds weights that float16 can't: the fp32 masters."""
    import torch

    from dpo_trainer.checkpoint.full import open_newest

    found, _ = open_newest(WorkDir(root).checkpoints)
    weight = found.tensor("model.layers.0.self_attn.q_proj.weight")
    return found.state.model_dump(mode="json"), not torch.equal(weight, weight.to(torch.float16).float())


def job(**training: Any) -> dict[str, Any]:
    return a_job(**{"maxSteps": STEPS, "precision": "fp16", "gradientCheckpointing": True, **training})


def test_float16_learns_as_float32_and_an_overflow_loses_no_pair(work: WorkDir, tmp_path: Path):
    shutil.copytree(work.root, tmp_path / "other")
    plain = on_ranks(2, train_on_rank, job(precision="fp32"), tmp_path / "other")[0]
    # 2^30 times a loss of 0.7 is more than float16's 65504 by far.
    run = on_ranks(2, half, job(), work.root, 2.0**30)[0]

    assert run["warnings"] == []
    assert run["overflows"] > 3
    # Every overflow halved the scale, and the step was done again with the same pairs.
    assert len(run["scales"]) == STEPS + run["overflows"]
    halvings = [after / before for before, after in pairwise([2.0**30, *run["scales"]])]
    assert sorted(halvings) == [0.5] * run["overflows"] + [1.0] * STEPS
    assert halvings[0] == 0.5
    for ours, theirs in zip(run["steps"], plain["steps"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-3)
        # The norm is that of the gradient itself, whatever the scale.
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.02)
    assert run["steps"][-1]["loss"] < 0.6
    [(state, masters)] = on_ranks(1, newest, work.root)
    assert masters
    kept = len(halvings) - max(index for index, ratio in enumerate(halvings) if ratio == 0.5) - 1
    assert state["loss_scale"] == {"factor": run["scales"][-1], "updates": kept, "overflows": 0}


def test_a_gradient_that_is_infinite_at_every_scale_ends_the_run(work: WorkDir):
    for run in on_ranks(2, half, job(nonFinite={"action": "fail"}), work.root, float("inf")):
        code, message = run["error"]
        assert code == ExitCode.NON_FINITE
        assert message.startswith("Step 1: expected finite numbers, found NaN or infinity in the gradient")
        assert run["overflows"] == len(run["scales"]) == 20
    assert not [entry for entry in work.checkpoints.iterdir() if entry.is_dir()]


@pytest.mark.exhaustive
def test_a_resumed_run_has_the_saved_loss_scale(work: WorkDir, tmp_path: Path):
    shutil.copytree(work.root, tmp_path / "straight")
    straight = on_ranks(2, half, job(), tmp_path / "straight", 2.0**30)[0]
    first = on_ranks(2, half, job(), work.root, 2.0**30, 1, (1, 3))[0]
    assert first["status"] == "Stopped"
    second = on_ranks(2, half, job(), work.root, None, 2)[0]

    assert second["overflows"] == 0
    assert set(second["scales"]) == {first["scales"][-1]}
    assert [[line[key] for key in KEYS] for line in second["steps"]] == [
        pytest.approx([line[key] for key in KEYS], rel=1e-5, abs=1e-5) for line in straight["steps"]
    ]


def refused(document: dict[str, Any], root: Path) -> dict[str, Any]:
    supported(False)
    return train_on_rank(document, root)


def test_a_processor_without_float16_names_the_alternatives(work: WorkDir):
    with pytest.raises(
        RankFailed, match=r"spec.training.precision: fp16 needs a GPU, or a CPU with .* Use bf16 or fp32"
    ):
        on_ranks(1, refused, job(), work.root)
