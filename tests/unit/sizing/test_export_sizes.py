"""What checkpoint and export take, added up by hand."""

import pytest

from dpo_operator.api.models.config import shape_of
from dpo_operator.api.models.shape import ModelShape
from dpo_operator.sizing import export
from dpo_operator.sizing.memory import CPU_RUNTIME, PEFT_RUNTIME
from dpo_operator.sizing.work import Pairs
from tests.unit.sizing.build import PAIRS, PARAMETERS, QWEN_7B, a_spec, small

pytestmark = pytest.mark.unit

QV = {"type": "lora", "rank": 2, "targetModules": ["q_proj", "v_proj"]}
WEIGHTS_72B = {"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 29568, "num_attention_heads": 64, "num_key_value_heads": 8}  # fmt: skip
LONG = Pairs(prompt=100, chosen=50, rejected=30, longest=900, known=True, count=9)


def large() -> ModelShape:
    return shape_of(QWEN_7B | WEIGHTS_72B)


def test_a_small_model_is_loaded_whole_to_be_checked():
    found = export.estimate(small(), a_spec(), PAIRS)
    # Three float32 numbers of each element; float32 files, by default of config.json; the largest matrix is the embedding's 256.
    assert (found.checkpoint, found.export) == (12 * PARAMETERS, 4 * PARAMETERS)
    assert found.memory == CPU_RUNTIME + 4 * PARAMETERS + 8 * 256


def test_a_large_model_is_never_whole_in_memory():
    spec = a_spec(nodes=8, gpusPerNode=8, training={"precision": "bf16"})
    found, shape = export.estimate(large(), spec, LONG), large()
    matrix, rows = 152064 * 8192, 150
    assert found.memory == CPU_RUNTIME + 2 * 2 * matrix + (4 * 2 + 8) * rows * 152064 + 4 * matrix
    assert found.memory < 0.1 * 2 * shape.parameters
    assert found.checkpoint == 12 * shape.parameters / 64


def test_an_adapter_is_small_and_its_merge_is_not():
    spec = a_spec(adapter=QV, training={"precision": "bf16"})
    # In both layers, q: 2 x (8 + 8), v: 2 x (8 + 4).
    found = export.estimate(small(), spec, PAIRS)
    assert (found.checkpoint, found.export) == (12 * 112, 4 * 112)
    assert found.memory == CPU_RUNTIME + PEFT_RUNTIME + 2 * PARAMETERS + 8 * 112
    merged = export.estimate(large(), a_spec(adapter=QV, export={"merge": True}, training={"precision": "bf16"}), LONG)
    assert merged.memory > 2 * large().parameters


def test_experts_are_loaded_whole():
    mixtral = {
        "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2, "torch_dtype": "bfloat16",
    }  # fmt: skip
    shape = shape_of(mixtral)
    assert export.estimate(shape, a_spec(training={"precision": "bf16"}), LONG).memory > 2 * shape.parameters
