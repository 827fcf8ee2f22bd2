"""model.reference: another model, loaded for its log-probs alone, gives TRL's losses with ref_model."""

import math
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.export.test_export import _export
from tests.numerics.jobs import a_job, make_model, some_pairs, train_on_rank
from tests.numerics.losses.test_dpo_against_trl import EPOCHS, KEYS, PAIRS, STEPS, trl_training
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics


def make_other_model(folder: Path) -> None:
    """The same tokens, another size."""
    make_model(folder, layers=1, head_dim=16)


def memory_after_close(root: Path, document: dict[str, Any]) -> tuple[int, int]:
    """Elements of weights that a closed reference engine still holds, and how many it held; it has no optimizer."""
    from dpo_operator.api.types import DPOJob
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine

    engine = Engine(DPOJob.model_validate(document).spec, root / "reference-model", join_world("cpu"), trained=False)
    parameters = list(engine.module.parameters())
    assert not any(parameter.requires_grad for parameter in parameters)
    held = engine.partition_report()["held"]
    engine.close()
    return sum(p.numel() + p.ds_tensor.numel() for p in parameters), held


def test_every_step_equals_trls_with_ref_model(tmp_path: Path):
    work = WorkDir(tmp_path / "ours")
    some_pairs(PAIRS).save(work.train_data)
    on_ranks(1, make_model, work.model)
    on_ranks(1, make_other_model, work.reference_model)
    document = a_job(epochs=EPOCHS, shuffle=False, gradientCheckpointing=True)
    document["spec"]["model"]["reference"] = {"name": "other"}

    got = on_ranks(2, train_on_rank, document, work.root)[0]
    [theirs] = on_ranks(
        1, trl_training, work.model, some_pairs(PAIRS), tmp_path / "trl", None, None, work.reference_model
    )
    assert got["warnings"] == []
    assert len(got["steps"]) == len(theirs) == STEPS
    # Far from the first loss of a policy that is its own reference.
    assert abs(got["steps"][0]["loss"] - math.log(2)) > 0.01
    for mine, trl in zip(got["steps"], theirs, strict=True):
        for key in KEYS:
            assert mine[key] == pytest.approx(trl[key], abs=1e-4, rel=1e-5), (mine["step"], key)

    _export(document, work)
    assert "| reference model | `other` |" in (work.export / "README.md").read_text()
    for left, held in on_ranks(2, memory_after_close, work.root, document):
        assert left == 0
        assert held > 1000
