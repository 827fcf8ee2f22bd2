"""Dimensions read from a config.json against the models that transformers makes of it."""

import json
from typing import Any

import pytest

from dpo_operator.api.model import Adapter
from dpo_operator.api.models.config import shape_of
from dpo_operator.sizing.trained import trained_parameters

pytestmark = pytest.mark.numerics

WIDTHS = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "vocab_size": 97, "max_position_embeddings": 40,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 16},
    "mistral": {"model_type": "mistral"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "gemma": {"model_type": "gemma"},
    "gemma2": {"model_type": "gemma2", "head_dim": 16},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 16},
    "granite": {"model_type": "granite"},
    "olmo": {"model_type": "olmo"},
    "olmo2": {"model_type": "olmo2"},
    "phi3": {"model_type": "phi3", "pad_token_id": 0},
    "smollm3": {"model_type": "smollm3", "pad_token_id": 0},
    "phi": {"model_type": "phi"},
    "gpt2": {"model_type": "gpt2", "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 40},
    "gpt_neox": {"model_type": "gpt_neox"},
    "gpt_neox-no-bias": {"model_type": "gpt_neox", "attention_bias": False},
    "opt": {"model_type": "opt", "ffn_dim": 80, "word_embed_proj_dim": 48},
    "starcoder2": {"model_type": "starcoder2"},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"model_type": "qwen2_moe", "num_experts": 4, "shared_expert_intermediate_size": 32, "mlp_only_layers": [0], **EXPERTS},
    "qwen3_moe": {"model_type": "qwen3_moe", "num_experts": 4, "decoder_sparse_step": 2, "head_dim": 16, **EXPERTS},
}  # fmt: skip


def made_of(given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model without memory for its weights, and the config.json that transformers would write."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    widths = {key: value for key, value in WIDTHS.items() if given["model_type"] != "gpt2" or key == "vocab_size"}
    config = AutoConfig.for_model(**widths | given)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model, json.loads(config.to_json_string())


@pytest.mark.parametrize("name", CASES)
def test_counts_of_weights_and_adapter_parameters_are_exact(name: str) -> None:
    from dpo_trainer.model.adapters import add_lora

    model, written = made_of(CASES[name])
    shape = shape_of(written)
    assert shape.exact
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    # What a user left out of the file has the family's defaults, too.
    assert shape_of(WIDTHS | CASES[name]).parameters == shape.parameters
    adapter = Adapter.model_validate({"type": "lora", "rank": 3, "targetModules": ["all-linear"]})
    adapted = add_lora(model, adapter, seed=0)
    assert trained_parameters(shape, adapter) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
