"""Bytes of memory, added up by hand."""

import dataclasses
import math

import pytest

from dpo_operator.sizing import memory
from dpo_operator.sizing.activations import with_gradient, without_gradient
from dpo_operator.sizing.trained import trained_parameters
from dpo_operator.sizing.work import Pairs, Work, largest, typical
from tests.unit.sizing.build import PAIRS, PARAMETERS, a_spec, qwen, small

pytestmark = pytest.mark.unit

ONE_PAIR = Work(tokens=6, pairs=1, layout="shared", prompt=2, chosen=3, rejected=1)
QV = {"type": "lora", "rank": 2, "targetModules": ["q_proj", "self_attn.v_proj"]}


def test_lasting_parts_of_a_cpu_rank() -> None:
    found = memory.estimate(small(), a_spec(), PAIRS)
    assert PARAMETERS == 1704
    expected = {
        "weights": 4 * 1704, "gathered weights": 0, "fp32 master weights": 0, "fp32 gradients": 4 * 1704, "optimizer state": 8 * 1704,
    }  # fmt: skip
    assert {name: found.lasting[name] for name in expected} == expected
    assert found.phases["optimizer step"] == {"optimizer's buffers": 4 * 1704}
    lower = memory.estimate(small(), a_spec(training={"precision": "bf16"}), PAIRS).lasting
    assert (lower["weights"], lower["fp32 master weights"]) == (2 * 1704, 4 * 1704)


def test_ranks_with_gpus_share_everything_but_what_they_gather() -> None:
    spec = a_spec(nodes=2, gpusPerNode=2, training={"precision": "bf16"})
    found = memory.estimate(small(), spec, PAIRS)
    quarter = 1704 / 4
    expected = {
        "weights": 2 * quarter, "gathered weights": 2 * 1704, "fp32 master weights": 4 * quarter, "fp32 gradients": 4 * quarter,
        "optimizer state": 8 * quarter,
    }  # fmt: skip
    assert {name: found.lasting[name] for name in expected} == expected
    # The fused kernel has no temporaries but a group's gradients in one piece.
    assert found.phases["optimizer step"] == {"optimizer's buffers": 4 * quarter}
    many = qwen(80, gpus=1).memory().phases["optimizer step"]
    assert many == {"optimizer's buffers": 4 * (2**24 + 152064 * 3584)}


def test_a_copy_of_the_weights_in_each_node_is_shared_by_its_gpus() -> None:
    spec = a_spec(nodes=2, gpusPerNode=2, training={"precision": "bf16", "hierarchicalPartition": True})
    assert memory.estimate(small(), spec, PAIRS).lasting["weights, the node's copy"] == 2 * 1704 / 2


def test_offloaded_state_is_the_hosts() -> None:
    spec = a_spec(gpusPerNode=2, training={"precision": "bf16", "offload": "cpu"})
    found = memory.estimate(small(), spec, PAIRS)
    assert set(found.lasting) == {"weights", "gathered weights", "CUDA and NCCL", "allocator"}
    assert found.host["optimizer state"] == 8 * 1704 / 2
    assert found.phases["optimizer step"] == {"optimizer's buffers": 0}


def test_8_bit_state_is_a_quarter() -> None:
    spec = a_spec(gpusPerNode=1, training={"precision": "bf16", "optimizer": "adamw-8bit"})
    # Two moments of a byte, each with 4 bytes of scale for 256 elements.
    assert memory.estimate(small(), spec, PAIRS).lasting["optimizer state"] == 1704 * (2 + 8 / 256)


def test_adapters_alone_have_gradients_and_state() -> None:
    spec = a_spec(adapter=QV)
    # In both layers, q: 2 x (8 + 8), v: 2 x (8 + 4).
    assert trained_parameters(small(), spec.adapter) == 2 * (32 + 24)
    found = memory.estimate(small(), spec, PAIRS)
    assert found.lasting["weights"] == 4 * (1704 + 112)
    assert found.lasting["optimizer state"] == 8 * 112
    dora = a_spec(adapter=QV | {"dora": True})
    assert trained_parameters(small(), dora.adapter) == 112 + 2 * (8 + 4)


def test_activations_of_all_layers() -> None:
    """Each token, in a layer: two norms keep their input and the normalized one, 2 x 8 x (4 + 4), and their scales, 2 x 4: 136.
    Inputs of the matrices, 4 x (8 + 8 + 8 + 16): 160. Gate, up and their product's factor, 4 x 3 x 16: 192. Queries and output,
    keys and values, 4 x (8 + 8 + 4 + 4), and a logarithm for each head, 4 x 2: 104. Together 592.
    The rejected answer of 1 token sees 3: keys and values for each query head, 4 x 2 x 8 x 3, and a mask, 4 x 1 x 3: 204.
    Around the layers: embedding, last norm's input and output, 3 x 4 x 8 for each token.
    """
    found = with_gradient(small(), a_spec(), ONE_PAIR, on_gpu=False)
    assert found.kept == 2 * (6 * 592 + 204) + 6 * 96
    # While the MLP's gradients are made: three as wide as it is, two as wide as the model.
    assert found.transient == 6 * 4 * (3 * 16 + 2 * 8)


def test_a_heap_loses_some_of_what_comes_and_goes() -> None:
    found = memory.estimate(small(), a_spec(), PAIRS).phases["backward pass"]
    assert found["activations"] == 2 * (6 * 592 + 204) + 6 * 96
    assert found["allocator"] == found["activations"] / 2 + 6 * (6 * 592 + 204)
    # Of both layers, an adapted q has three outputs of 8 that nothing keeps, for each of 6 tokens.
    adapted, spec = a_spec(adapter=QV | {"targetModules": ["q_proj"]}), a_spec()
    passes = with_gradient(small(), adapted, ONE_PAIR, on_gpu=False)
    assert passes.dropped == 3 * 4 * 6 * 8
    lost = memory.estimate(small(), adapted, PAIRS).phases["backward pass"]["allocator"]
    assert lost == passes.kept / 2 + 6 * passes.layer + 2 * passes.dropped
    assert with_gradient(small(), spec, ONE_PAIR, on_gpu=False).dropped == 0
    # Large tensors are mapped one by one and given back.
    many = dataclasses.replace(PAIRS, longest=2**20)
    assert "allocator" not in memory.estimate(small(), a_spec(), many).phases["backward pass"]


def test_checkpointing_keeps_one_layer_and_the_borders() -> None:
    spec = a_spec(training={"gradientCheckpointing": True})
    found = with_gradient(small(), spec, ONE_PAIR, on_gpu=False)
    assert found.kept == (6 * 592 + 204) + 2 * 6 * 4 * 8 + 6 * 96


def test_the_output_layer_has_logits_of_the_answers_alone() -> None:
    # 4 answer tokens, 32 words: logits 4 x 4 x 32; 3 copies of them for the figures; hidden states and their gradient.
    found = with_gradient(small(), a_spec(), ONE_PAIR, on_gpu=False)
    assert found.head == 4 * 4 * 32 + 3 * 4 * 4 * 32 + 2 * 4 * 4 * 8


def test_logits_stop_growing_at_a_chunk() -> None:
    job = qwen(80)
    spec = job.spec

    def head(rows: int) -> float:
        work = Work(tokens=rows, pairs=1, layout="shared", prompt=0, chosen=rows / 2, rejected=rows / 2)
        return without_gradient(job.shape, spec, work, on_gpu=True).head - 2 * 2 * rows * job.shape.hidden

    chunk = 256 * 2**20 // (4 * 152064)
    assert head(chunk // 2) < head(chunk) == head(100 * chunk)


@pytest.mark.parametrize(
    ("settings", "tokens", "pairs"),
    [
        ({"microBatchTokens": 30}, 30, 5),
        ({"microBatchTokens": 3}, 6, 1),  # a pair is never cut
        ({"microBatchTokens": 1000}, 48, 8),  # a step has no more
        ({"microBatchTokens": 1000, "microBatchSize": 2}, 12, 2),
        ({"microBatchTokens": 32, "packing": "plain"}, 32, 4),
    ],
)
def test_the_largest_micro_batch(settings: dict, tokens: float, pairs: float) -> None:
    spec = a_spec(training=settings)
    found = largest(spec, PAIRS, spec.micro_batch, most_pairs=8)
    assert (found.tokens, found.pairs) == (tokens, pairs)


def test_a_micro_batch_of_few_pairs_may_be_all_long_ones() -> None:
    spec = a_spec(training={"microBatchTokens": 1000, "microBatchSize": 2})
    uneven = dataclasses.replace(PAIRS, longest=60)
    found = largest(spec, uneven, spec.micro_batch, most_pairs=8)
    assert (found.tokens, found.pairs, found.answers) == (120, 2, 80)
    mean = typical(spec, uneven, spec.micro_batch, most_pairs=8)
    assert (mean.tokens, mean.pairs, mean.answers) == (12, 2, 8)


def test_attention_that_cannot_be_packed_is_padded() -> None:
    spec = a_spec(model={"name": "m", "attention": "eager"})
    found = largest(spec, PAIRS, spec.micro_batch, most_pairs=1)
    # Two rows, each as long as prompt and chosen answer.
    assert (found.layout, found.tokens) == ("off", 10)


def test_the_largest_phase_counts() -> None:
    found = memory.estimate(small(), a_spec(), PAIRS)
    assert found.peak == max(found.total(phase) for phase in found.phases)
    assert math.isclose(sum(found.parts.values()), found.peak)
    frozen = memory.estimate(qwen(80).shape, a_spec(adapter=QV | {"targetModules": ["q_proj"]}), PAIRS)
    # A frozen model is largest while it is read: the file, what is read and what is kept.
    assert frozen.peak_phase == "loading"


def test_without_data_pairs_are_assumed_from_the_longest_sequence() -> None:
    found = Pairs.of(a_spec(data={"train": {"source": "d"}, "maxLength": 400}), None)
    assert (found.prompt, found.chosen, found.longest, found.known) == (100, 100, 700, False)
    assert found.with_means(300, 250).longest == 800
