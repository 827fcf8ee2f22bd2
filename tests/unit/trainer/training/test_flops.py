"""A step's floating-point operations, counted by hand, and the peaks of GPUs by the names they give themselves."""

import numpy as np
import pytest

from dpo_operator.api.models import hardware
from dpo_operator.api.models.config import shape_of
from dpo_trainer.training.flops import Throughput

pytestmark = pytest.mark.unit

CONFIG = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False,
}  # fmt: skip
# Queries and output 8x8, keys and values 8x4, gate, up and down 8x16: of two layers.
BODY = 2 * (2 * 64 + 2 * 32 + 3 * 128)
PAIRS = np.array([[10, 4, 6], [2, 3, 1]], dtype=np.int64)


def test_a_step_by_hand():
    # 26 tokens with shared prompts, 14 of them scored. Looked at: 10*10/2 + 4*(10+2) + 6*(10+3) + 2*2/2 + 3*(2+1.5) + 1*(2+0.5)
    looked_at = 50 + 48 + 78 + 2 + 10.5 + 2.5
    forward = 2 * BODY * 26 + 2 * 800 * 14 + 4 * 2 * 8 * looked_at
    shared = Throughput(shape_of(CONFIG), "shared", frozen=False, peak=1e6)
    assert shared.step_flops(PAIRS) == pytest.approx(3 * forward)
    assert shared.utilization(PAIRS, 2.0) == pytest.approx(3 * forward / 2e6)
    assert Throughput(shape_of(CONFIG), "shared", frozen=True, peak=1e6).step_flops(PAIRS) == pytest.approx(2 * forward)


def test_a_prompt_for_each_answer_is_counted_twice():
    plain = Throughput(shape_of(CONFIG), "plain", frozen=False, peak=1e6)
    shared = Throughput(shape_of(CONFIG), "shared", frozen=False, peak=1e6)
    more = 3 * (2 * BODY * 12 + 4 * 2 * 8 * 52)
    assert plain.step_flops(PAIRS) - shared.step_flops(PAIRS) == pytest.approx(more)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"), ("NVIDIA H200", "h200"), ("NVIDIA L40S", "l40s"), ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"), ("NVIDIA A10G", "a10g"), ("NVIDIA GeForce RTX 4090", None), ("NVIDIA L40", None),
    ],
)  # fmt: skip
def test_a_gpu_is_known_by_its_name(name: str, entry: str | None):
    found = hardware.of_name(name)
    assert (found.name if found else None) == entry
