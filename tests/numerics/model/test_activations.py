"""The planner's bytes of activations against what autograd really keeps of a forward pass."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpo_operator.api.models.config import shape_of
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.sizing.activations import with_gradient
from dpo_operator.sizing.work import Work
from dpo_trainer.batches.batch import collate
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.model.load import load_model
from dpo_trainer.model.policy import Policy

pytestmark = pytest.mark.numerics

PROMPT, CHOSEN, REJECTED, PAIRS = 32, 48, 40, 2
LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 128, "max_position_embeddings": 256,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_positions": 256, "vocab_size": 128}
QV = {"type": "lora", "rank": 4, "targetModules": ["q_proj", "v_proj"]}
EVERYWHERE = {"type": "lora", "rank": 4, "targetModules": ["all-linear"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def kept(folder: Path, config: dict[str, Any], spec: DPOJobSpec, layers: int) -> int:
    """Bytes of all storages that autograd saves, but for the weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    made = AutoConfig.for_model(**config | {"n_layer" if "n_layer" in config else "num_hidden_layers": layers})
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    policy = Policy(load_model(spec, folder))
    assert policy.pack(spec.training.packing)
    data = PairDataset.from_pairs(
        TokenPair(*(np.arange(n, dtype=np.int32) for n in (PROMPT, CHOSEN, REJECTED)), row) for row in range(PAIRS)
    )
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    saved: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # else another one could get its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(collate(data, range(PAIRS), layout=spec.training.packing))
    return sum(saved.values())


CASES = {
    "fp32": (LLAMA, {}, {}, 0.001),
    "bf16": (LLAMA, {"precision": "bf16"}, {}, 0.001),
    "plain": (LLAMA, {"packing": "plain"}, {}, 0.03),
    "checkpointing": (LLAMA, {"gradientCheckpointing": True}, {}, 0.001),
    "q and v": (LLAMA, {}, QV, 0.001),
    "all-linear, bf16": (LLAMA, {"precision": "bf16"}, EVERYWHERE, 0.001),
    "qwen2": (LLAMA | {"model_type": "qwen2"}, {}, {}, 0.001),
    "qwen3": (LLAMA | {"model_type": "qwen3", "head_dim": 16}, {}, {}, 0.05),
    "gemma": (LLAMA | {"model_type": "gemma", "head_dim": 16}, {}, {}, 0.15),
    "gpt2": (GPT2 | {"n_layer": 1}, {}, {}, 0.001),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_keeps_what_the_planner_says(name: str, folder: Path) -> None:
    config, training, adapter, tolerance = CASES[name]
    settings = {"precision": "fp32", "gradientCheckpointing": False} | training
    spec = DPOJobSpec.model_validate(
        {"model": {"name": "m"}, "data": {"train": {"source": "d"}}, "training": settings, "adapter": adapter}
    )
    measured = kept(folder, config, spec, 3) - kept(folder, config, spec, 2)
    layout = spec.training.packing
    tokens = PAIRS * ((1 if layout == "shared" else 2) * PROMPT + CHOSEN + REJECTED)
    work = Work(tokens, PAIRS, layout, PROMPT, CHOSEN, REJECTED)

    def predicted(layers: int) -> float:
        key = "n_layer" if "n_layer" in config else "num_hidden_layers"
        shape = shape_of(json.loads(json.dumps(config | {key: layers})))
        return with_gradient(shape, spec, work, on_gpu=False).kept

    assert predicted(3) - predicted(2) == pytest.approx(measured, rel=tolerance)
