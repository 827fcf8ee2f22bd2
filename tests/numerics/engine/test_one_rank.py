"""One rank without DeepSpeed's module hooks gives the bits of one with them, and each resumes the other's checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import a_job, make_model, some_pairs, train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

STEPS, HALF = 20, 10
KEYS = ("step", "loss", "rewards/margins", "logps/chosen", "grad_norm", "learning_rate")


def keep_hooks() -> None:
    """Train as DeepSpeed does by itself."""
    from dpo_trainer.distributed.zero3_internals import Zero3Internals

    Zero3Internals.remove_module_hooks = lambda self: None  # type: ignore[method-assign]


def train(document: dict[str, Any], root: Path, attempt: int, hooks: bool) -> list[list[Any]]:
    if hooks:
        keep_hooks()
    run = train_on_rank(document, root, attempt)
    assert run["warnings"] == []
    return [[line[key] for key in KEYS] for line in run["steps"]]


def hooks_of_modules(document: dict[str, Any], model: Path, keep: bool) -> int:
    """Forward hooks that an engine of one rank has on its modules."""
    from dpo_operator.api.types import DPOJob
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine

    if keep:
        keep_hooks()
    engine = Engine(DPOJob.model_validate(document).spec, model, join_world("cpu"))
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in engine.module.modules())


def weights(work: WorkDir, step: int) -> dict[str, bytes]:
    """Files of a checkpoint that hold tensors."""
    folder = work.checkpoints / f"step-{step:08d}"
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def test_a_step_without_hooks_has_the_bits_of_one_with_them(tmp_path: Path):
    document = a_job(maxSteps=STEPS, precision="bf16", gradientCheckpointing=True)
    document["spec"]["checkpoint"] = {"everySteps": HALF, "keepLast": 2}
    works = {hooks: WorkDir(tmp_path / f"hooks-{hooks}") for hooks in (True, False)}
    some_pairs(21).save(works[True].train_data)
    on_ranks(1, make_model, works[True].model)
    shutil.copytree(works[True].root, works[False].root)
    with_hooks, without = (
        on_ranks(1, hooks_of_modules, document, works[True].model, keep)[0] for keep in (True, False)
    )
    # The engine's own few on the whole model, and that of activation checkpointing on the embedding, stay.
    assert with_hooks > 50
    assert without < 5

    curves = {hooks: on_ranks(1, train, document, work.root, 1, hooks)[0] for hooks, work in works.items()}
    assert len(curves[True]) == STEPS
    assert curves[False] == curves[True]
    files = {hooks: weights(work, STEPS) for hooks, work in works.items()}
    assert files[True]
    assert files[False] == files[True]

    for hooks, work in works.items():
        shutil.rmtree(work.checkpoints / f"step-{STEPS:08d}")
        assert on_ranks(1, train, document, work.root, 2, not hooks)[0] == curves[True]
        assert weights(work, STEPS) == files[True]
