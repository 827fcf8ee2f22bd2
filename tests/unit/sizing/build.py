"""A model small enough to count by hand, and jobs that train it."""

from typing import Any

from dpo_operator.api.models import hardware
from dpo_operator.api.models.config import shape_of
from dpo_operator.api.models.shape import ModelShape
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.sizing import proposal
from dpo_operator.sizing.work import Pairs

# Of a layer: q 8x8, k and v 8x4, o 8x8, gate, up and down 8x16 each: 576; two norms of 8. Embedding and head 32x8 each, a last norm.
SMALL = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 16, "vocab_size": 32,
}  # fmt: skip
PARAMETERS = 2 * (576 + 16) + 2 * 256 + 8

# The shape of Qwen2.5-7B.
QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip

PAIRS = Pairs(prompt=2, chosen=3, rejected=1, longest=6, known=True, count=100)


def small() -> ModelShape:
    return shape_of(SMALL)


def a_spec(**spec: Any) -> DPOJobSpec:
    """A job on a CPU in fp32 without recomputation; parts of the spec (camelCase) can be replaced or, as training is, added to."""
    training = {"precision": "fp32", "gradientCheckpointing": False, "globalBatchSize": 8, "microBatchTokens": 6}
    least = {"model": {"name": "m"}, "data": {"train": {"source": "d"}, "maxLength": 8}, "gpusPerNode": 0}
    return DPOJobSpec.model_validate(least | spec | {"training": training | spec.get("training", {})})


def qwen(memory: float, *, gpus: int = 8, **spec: Any) -> proposal.Job:
    """A DPO job on Qwen2.5-7B. memory: GiB of each GPU."""
    made = DPOJobSpec.model_validate(
        {"model": {"name": "m"}, "data": {"train": {"source": "d"}, "maxLength": 2048}, "gpusPerNode": gpus} | spec
    )
    device = hardware.Device("gpu", memory * 2**30, 989e12, 67e12, 3.35e12, 450e9)
    return proposal.Job(made, shape_of(QWEN_7B), Pairs.of(made, None), device)
