"""The engine vllm as far as it goes without vLLM: what it would load. tests/vllm has the rest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data.prompts import Prompt, PromptSet, Shares
from dpo_trainer.rounds.engines.vllm_engine import VllmEngines, loading
from dpo_trainer.rounds.engines.vllm_process import kind_of
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry

pytestmark = pytest.mark.unit


def spec(**parts: Any) -> DPOJobSpec:
    rounds = {
        "judge": {"type": "builtin", "builtin": {"name": "length", "tokens": 5}},
        "generation": {"engine": "vllm", "maxNewTokens": 20, "tensorParallel": 2, "microBatchSize": 7},
    }
    made = {"model": {"name": "m"}, "data": {"train": {"source": "p"}}, "iterative": rounds, "gpusPerNode": 4}
    return DPOJobSpec.model_validate(made | parts)


def adapter_in(folder: Path, rank: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {"A": (rank, 4), "B": (4, rank)}
    save_file(
        {f"{name}.lora_{part}.weight": np.zeros(shape, dtype=np.float32) for part, shape in shapes.items()},
        folder / "adapter_model.safetensors",
    )


@pytest.fixture
def work(tmp_path: Path) -> WorkDir:
    """A leg whose round before is exported."""
    leg = WorkDir(tmp_path).round(2)
    prompts = [Prompt(np.arange(length, dtype=np.int32), 0, "") for length in (3, 9, 4)]
    PromptSet.of(prompts, Shares(1, None, 0, reuse=False), 0).save(leg.prompts)
    export = leg.round(1).export
    export.mkdir(parents=True)
    (export / "dpo_provenance.json").write_text(json.dumps({"checkpoint": {"step": 1, "digest": "d"}}))
    return leg


def test_all_weights_are_those_of_the_round_before(work: WorkDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = loading(spec(), work, 1)
    assert (found.model, found.adapter) == (str(work.round(1).export), None)
    assert (found.longest, found.dtype, found.batch) == (29, "bfloat16", 7)
    assert (found.devices, found.parallel) == ("2,3", 2)
    assert loading(spec(), work, 0).model == str(work.model)
    assert loading(spec(training={"device": "cpu", "precision": "fp32"}), work, 0).devices is None


def test_an_adapter_lies_beside_the_base(work: WorkDir) -> None:
    lora = spec(adapter={"type": "lora"})
    assert loading(lora, work, 0).adapter is None
    adapter_in(work.round(1).export, 12)
    found = loading(lora, work, 1)
    assert (found.model, found.adapter, found.rank) == (str(work.model), str(work.round(1).export), 16)
    # Without a trained one, that of supervised fine-tuning.
    adapter_in(work.model / "adapter", 4)
    started = spec(adapter={"type": "lora"}, model={"name": "m", "adapter": {"name": "a"}})
    assert loading(started, work, 0).adapter == str(work.model / "adapter")
    assert loading(started, work, 1).adapter == str(work.round(1).export)
    adapter_in(work.round(1).export, 600)
    with pytest.raises(TrainerError, match="at most 512, found 600"):
        loading(lora, work, 1)


def test_where_vllm_is_missing_the_way_out_is_said(work: WorkDir) -> None:
    with pytest.raises(TrainerError, match=r"pod\.generateImage .*DPO_GENERATE_PYTHON"):
        VllmEngines(spec(), work, Telemetry("generate", 1, work))


@pytest.mark.parametrize(
    ("error", "loaded", "kind"),
    [
        (ValueError("Free memory on device cuda:0 (3.1/80 GiB) is less than desired"), False, "memory"),
        (ValueError("No available memory for the cache blocks."), False, "memory"),
        (ValueError("Unknown architecture"), False, "refused"),
        (RuntimeError("Unsupported CPU attention configuration: head_dim=8"), False, "refused"),
        (RuntimeError("NCCL error"), False, "failed"),
        (KeyError("block"), True, "failed"),
        (MemoryError(), True, "memory"),
    ],
)
def test_only_what_a_restart_can_not_cure_ends_the_job(error: Exception, loaded: bool, kind: str) -> None:
    assert kind_of(error, loaded=loaded) == kind
