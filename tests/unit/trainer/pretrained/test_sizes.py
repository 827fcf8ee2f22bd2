"""Sizes in config.json that do not fit the weights are refused, and those of real models are not."""

import json

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.pretrained.checks import check_weights
from dpo_trainer.pretrained.sizes import check_sizes
from dpo_trainer.runtime.errors import TrainerError

pytestmark = pytest.mark.unit


def llama(layers: int = 2, hidden: int = 8, vocabulary: int = 32, inner: int = 16, prefix: str = "model") -> dict:
    """Shapes of the weights of a Llama whose output layer is its embedding."""
    layer = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 2, hidden), "self_attn.v_proj": (hidden // 2, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    return {
        f"{prefix}.embed_tokens.weight": (vocabulary, hidden),
        f"{prefix}.norm.weight": (hidden,),
        **{f"{prefix}.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in layer.items()},
    }


CONFIG = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "vocab_size": 32, "max_position_embeddings": 131072, "tie_word_embeddings": True,
}  # fmt: skip
GPT2 = {
    "wte.weight": (50, 8), "wpe.weight": (64, 8), "h.0.attn.c_attn.weight": (8, 24), "h.0.mlp.c_fc.weight": (8, 32),
    "h.0.mlp.c_proj.weight": (32, 8), "h.0.attn.c_proj.weight": (8, 8),
}  # fmt: skip
GPT2_CONFIG = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 50, "n_positions": 64}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers in config.json is 1000000000, and the weights have 2 layers"),
        ({"num_hidden_layers": 3}, "the weights have 2 layers"),
        ({"num_hidden_layers": 0}, "the weights have 2 layers"),
        ({"vocab_size": 10**18}, "vocab_size in config.json is 1000000000000000000, and the largest dimension"),
        ({"vocab_size": 31}, "vocab_size in config.json is 31, and the embedding in the weights is 32 by 8"),
        ({"hidden_size": 16}, "hidden_size in config.json is 16, and the embedding in the weights is 32 by 8"),
        ({"intermediate_size": 10**12}, "intermediate_size in config.json is 1000000000000"),
        ({"intermediate_size": 10**6}, "describe a model of 48000.* parameters"),
        ({"num_attention_heads": 10**6}, "num_attention_heads in config.json is 1000000"),
        ({"head_dim": 10**9}, "head_dim"),
        ({"num_key_value_heads": 10**9}, "num_key_value_heads"),
        ({"max_position_embeddings": 10**18}, "max_position_embeddings"),
        ({"mamba_state_dim": 10**18}, "mamba_state_dim"),
        ({"num_key_value_heads": [2, 10**9]}, "num_key_value_heads"),
        ({"hidden_size": -8}, "hidden_size in config.json is -8"),
        ({"vocab_size": 10**4000}, "a number of 13288 bits"),
    ],
)
def test_a_size_that_the_weights_do_not_have(changes, match):
    with pytest.raises(TrainerError, match=match) as failure:
        check_sizes(CONFIG | changes, llama(), "m")
    assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION


def test_positions_that_are_learned_are_compared():
    check_sizes(GPT2_CONFIG, GPT2, "m")
    with pytest.raises(TrainerError, match="is 65, and the weights have 64 positions"):
        check_sizes(GPT2_CONFIG | {"n_positions": 65}, GPT2, "m")


def test_layers_of_weights_whose_names_are_not_known():
    with pytest.raises(TrainerError, match="and the weights are 2 tensors"):
        check_sizes({"model_type": "new", "num_layers": 10**9}, {"a": (4, 4), "b": (4,)}, "m")


EXPERTS = {
    f"model.layers.{i}.mlp.experts.{e}.{name}.weight": shape
    for i in range(2)
    for e in range(4)
    for name, shape in (("gate_proj", (6, 8)), ("up_proj", (6, 8)), ("down_proj", (8, 6)))
}


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (CONFIG, llama()),
        (CONFIG | {"tie_word_embeddings": False}, llama() | {"lm_head.weight": (32, 8)}),
        (CONFIG, llama(layers=3)),  # a layer that predicts a further token
        ({"model_type": "other", "text_config": CONFIG}, llama(prefix="model.language_model")),
        (
            CONFIG | {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6, "head_dim": 2}
            | {"intermediate_size": 6144},  # of no layer
            llama() | EXPERTS,
        ),
        (
            {"model_type": "opt", "hidden_size": 16, "word_embed_proj_dim": 8, "num_hidden_layers": 2, "vocab_size": 32},
            llama(),
        ),
        ({"model_type": "new", "unknown_size": 5, "heads": "many", "eos_token_id": 10**12}, llama()),
    ],
    ids=["tied", "untied", "extra layer", "nested", "experts", "embedding of another width", "unknown"],
)  # fmt: skip
def test_sizes_of_models_as_they_are(config, shapes):
    check_sizes(config, shapes, "m")


def test_the_sizes_of_a_real_model(shared):
    folder = shared / "models" / "stories260K"
    weights = check_weights(folder, ["model.safetensors"], "m")
    check_sizes(json.loads((folder / "config.json").read_text()), weights.shapes, "m")
