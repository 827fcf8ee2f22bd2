"""The names of DeepSpeed that the trainer relies on although they are not documented: a new version is checked here first."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import dpo_trainer
from dpo_trainer.distributed import zero3_internals
from tests.numerics.jobs import a_job, make_model
from tests.numerics.ranks import on_ranks

DEEPSPEED = "0.19.8"
REQUIREMENTS = Path(__file__).parents[3] / "requirements" / "trainer.txt"

OPTIMIZER = {
    "optimizer", "fp32_partitioned_groups_flat", "fp16_partitioned_groups_flat", "fp16_groups", "grad_position", "get_param_id",
    "sub_group_to_group_id", "persistent_parameters", "loss_scale", "checkpoint_event_prologue", "checkpoint_event_epilogue",
    "_overflow_clean_up", "_reassign_or_swap_out_partitioned_parameters", "parameter_offload",
}  # fmt: skip
PARAMETER = {"ds_shape", "ds_numel", "ds_tensor", "ds_persist", "ds_status", "ds_secondary_tensor"}
OFFLOAD = {
    "_remove_module_hooks", "setup_zero_stage3_hooks", "forward_hooks", "backward_hooks", "partition_all_parameters",
    "get_param_coordinator",
}  # fmt: skip
COORDINATOR = {"is_invalid_trace", "_invalidate_trace"}
MODULE = {"__compatible_ops__", "_torch_reduce_scatter_fn", "MuonWithAuxAdam"}
# Other objects have attributes of these names, too.
COMMON = {"optimizer", "loss_scale"}


def missing_names(document: dict[str, Any], model: Path) -> list[str]:
    """Names that a real engine of the installed DeepSpeed does not have."""
    import deepspeed

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine

    engine = Engine(DPOJob.model_validate(document).spec, model, join_world("cpu"))
    zero = Path(deepspeed.__file__).parent / "runtime" / "zero"
    owners: list[tuple[Any, set[str]]] = [
        (engine.deepspeed.optimizer, OPTIMIZER),
        (engine.deepspeed.optimizer.parameter_offload, OFFLOAD),
        (engine.deepspeed.optimizer.parameter_offload.get_param_coordinator(), COORDINATOR),
        (next(engine.module.parameters()), PARAMETER),
        (deepspeed.ops, {"__compatible_ops__"}),
        (deepspeed.runtime.comm.coalesced_collectives, {"_torch_reduce_scatter_fn"}),
    ]
    found = [name for owner, names in owners for name in sorted(names) if not hasattr(owner, name)]
    # This process has a stub of that module, so its file is read.
    if "class MuonWithAuxAdam(" not in (zero / "muon" / "muon_optimizer.py").read_text():
        found.append("MuonWithAuxAdam")
    if f"from {zero3_internals.MUON} import MuonWithAuxAdam" not in (zero / "stage3.py").read_text():
        found.append(zero3_internals.MUON)
    return found


@pytest.mark.numerics
def test_the_pinned_deepspeed_has_every_internal_name_that_is_used(tmp_path: Path):
    assert version("deepspeed") == DEEPSPEED
    assert f"deepspeed=={DEEPSPEED} " in REQUIREMENTS.read_text()
    on_ranks(1, make_model, tmp_path / "model")
    assert on_ranks(1, missing_names, a_job(), tmp_path / "model") == [[]]


@pytest.mark.numerics
def test_deepspeeds_internal_names_are_used_in_one_module():
    inside = Path(zero3_internals.__file__)
    text = inside.read_text()
    names = OPTIMIZER | PARAMETER | OFFLOAD | COORDINATOR | MODULE
    assert {name for name in names if not re.search(rf"\b{name}\b", text)} == set()
    assert set(re.findall(r"\bds_\w+", text)) == PARAMETER
    assert set(re.findall(r"\b_zero\.(\w+)", text)) == OPTIMIZER
    private = re.compile(rf"\bds_[a-z]+\b|\b(?:{'|'.join(sorted(names - COMMON))})\b")
    others = [path for path in Path(dpo_trainer.__file__).parent.rglob("*.py") if path != inside]
    assert len(others) > 50
    assert {path.name: found for path in others if (found := private.findall(path.read_text()))} == {}
