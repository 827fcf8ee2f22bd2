"""config.json of many kinds, and of none: dimensions or a sentence, never anything else."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api.models.config import ModelConfigError, shape_of
from dpo_operator.api.models.shape import ModelShape
from dpo_operator.api.reports import DatasetReport, Termination, TokenReport

pytestmark = pytest.mark.unit

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN_05B = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
MISTRAL_7B = LLAMA_8B | {"model_type": "mistral", "vocab_size": 32000}
MIXTRAL = LLAMA_8B | {"model_type": "mixtral", "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2}
GEMMA3_4B = {
    "model_type": "gemma3", "dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
    },
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (LLAMA_8B, 8_030_261_248), (QWEN_05B, 494_032_768), (MISTRAL_7B, 7_241_732_096), (MIXTRAL, 46_702_792_704),
        (GPT2, 124_439_808), (GEMMA3_4B, 3_880_263_168),
    ],
    ids=["Llama-3.1-8B", "Qwen2.5-0.5B", "Mistral-7B", "Mixtral-8x7B", "GPT-2", "Gemma-3-4B, its text model"],
)  # fmt: skip
def test_published_models_have_their_published_numbers(config: dict[str, Any], parameters: int) -> None:
    assert shape_of(config).parameters == parameters


def test_experts_are_many_of_which_few_are_active() -> None:
    shape, dense = shape_of(MIXTRAL), shape_of(MISTRAL_7B)
    assert shape.active == dense.active + 32 * (3 * 4096 * 14336 + 4096 * 8)
    assert shape.inner == 2 * 14336


def test_a_family_without_a_rule_is_taken_for_a_llama() -> None:
    shape = shape_of(LLAMA_8B | {"model_type": "brand_new"})
    assert not shape.exact
    assert shape.parameters == shape_of(LLAMA_8B).parameters
    assert shape_of(LLAMA_8B).exact


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "expected hidden_size or n_embd or d_model, found none"),
        ([], "expected an object, found list"),
        (LLAMA_8B | {"num_hidden_layers": "32"}, "num_hidden_layers: expected a whole number from 1"),
        (LLAMA_8B | {"vocab_size": 0}, "vocab_size: expected a whole number from 1"),
        (LLAMA_8B | {"num_attention_heads": True}, "num_attention_heads: expected a whole number"),
        (LLAMA_8B | {"intermediate_size": [1, 2]}, "intermediate_size: expected a whole number"),
        (LLAMA_8B | {"hidden_size": 10**30}, "hidden_size: expected a whole number"),
        ({"model_type": "t5", "d_model": 512}, "model_type t5"),
        ({"model_type": "opt", "hidden_size": 1024, "word_embed_proj_dim": 512}, "word_embed_proj_dim: expected 1024"),
    ],
)
def test_what_is_missing_or_wrong_is_named(config: Any, said: str) -> None:
    with pytest.raises(ModelConfigError, match=r"^config\.json: ") as raised:
        shape_of(config)
    assert said in str(raised.value)


KEYS = sorted(
    {key for config in (LLAMA_8B, MIXTRAL, GPT2, GEMMA3_4B) for key in config}
    | {"head_dim", "mlp_only_layers", "n_inner"}
)
FAMILIES = [
    "llama",
    "gpt2",
    "mixtral",
    "qwen3_moe",
    "qwen2_moe",
    "phi3",
    "opt",
    "phi",
    "gpt_neox",
    "starcoder2",
    "gemma3",
    "?",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=6,
)
NUMBERS = st.integers(min_value=-1, max_value=1 << 25) | st.integers(min_value=1, max_value=4096)
CONFIGS = st.builds(
    lambda family, sane, odd: sane | odd | {"model_type": family},
    st.sampled_from(FAMILIES) | JSON,
    st.dictionaries(st.sampled_from(KEYS), NUMBERS),
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3),
)


def said_of(config: Any) -> str:
    """The sentence about a configuration, or an empty one where it has dimensions that survive their way to the operator."""
    try:
        shape = shape_of(config)
    except ModelConfigError as error:
        return str(error)
    assert shape.parameters > 0
    assert ModelShape.model_validate_json(shape.model_dump_json()) == shape
    return ""


@given(CONFIGS | JSON)
def test_any_json_gives_dimensions_or_a_sentence(config: Any) -> None:
    said = said_of(config)
    assert not said or said.startswith("config.json: ")


@pytest.mark.parametrize("config", [LLAMA_8B, MIXTRAL, GEMMA3_4B, GPT2])
def test_the_last_words_of_prepare_have_room_for_a_model(config: dict[str, Any]) -> None:
    found = DatasetReport(
        train_pairs=10**7, eval_pairs=10**6, dropped={f"a_reason_{i}": 10**6 for i in range(30)}, model=shape_of(config),
        tokens=TokenReport(prompt=512.25, chosen=600.5, rejected=700.75, longest=4096),
    )  # fmt: skip
    said = Termination(phase="prepare", attempt=1, outcome="Succeeded", exit_code=0, dataset=found).to_text()
    assert len(said.encode()) <= 3600  # the rest is for progress
    back = Termination.from_text(said)
    assert back is not None
    assert back.dataset == found
