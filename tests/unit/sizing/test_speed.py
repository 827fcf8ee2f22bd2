"""Operations and seconds of a step, counted by hand."""

import dataclasses

import pytest

from dpo_operator.api.models import hardware
from dpo_operator.sizing import speed
from dpo_operator.sizing.work import Work
from tests.unit.sizing.build import PAIRS, a_spec, qwen, small

pytestmark = pytest.mark.unit

ONE_PAIR = Work(tokens=6, pairs=1, layout="shared", prompt=2, chosen=3, rejected=1)
# 6 tokens through 2 layers of 576 elements, a multiplication and an addition for each.
PRODUCTS = 2 * 6 * 2 * 576
# Each token with itself and those before it: 5 x 5 / 2, and 3 x 3 / 2 without the prompt's own 2 x 2 / 2; two products as wide as all
# heads, in 2 layers.
ATTENTION = 2 * 2 * 8 * 2 * (25 / 2 + 9 / 2 - 4 / 2)
# 4 answer tokens, 32 words of 8.
HEAD = 2 * 4 * 32 * 8


def test_operations_of_all_weights() -> None:
    assert speed.flops(small(), a_spec(), ONE_PAIR) == (3 * (PRODUCTS + ATTENTION), 3 * HEAD)


def test_recomputation_is_one_forward_pass_more() -> None:
    spec = a_spec(training={"gradientCheckpointing": True})
    assert speed.flops(small(), spec, ONE_PAIR) == (4 * (PRODUCTS + ATTENTION), 3 * HEAD)


def test_frozen_weights_have_no_gradient_of_their_own() -> None:
    spec = a_spec(adapter={"type": "lora", "rank": 2, "targetModules": ["q_proj"]})
    adapters = 3 * 2 * 6 * 2 * 2 * (8 + 8)
    assert speed.flops(small(), spec, ONE_PAIR) == (2 * PRODUCTS + 3 * ATTENTION + adapters, 2 * HEAD)


def test_plain_packing_computes_the_prompt_twice() -> None:
    plain = dataclasses.replace(ONE_PAIR, tokens=8, layout="plain")
    body, head = speed.flops(small(), a_spec(), plain)
    assert body == 3 * (PRODUCTS * 8 / 6 + 4 * 8 * 2 * (25 / 2 + 9 / 2))
    assert head == 3 * HEAD


def test_logits_in_chunks_are_computed_twice() -> None:
    shape = small().model_copy(update={"vocabulary": 1 << 24})
    rows = 256 * 2**20 // (4 << 24) + 1
    work = Work(tokens=rows, pairs=1, layout="shared", prompt=0, chosen=rows / 2, rejected=rows / 2)
    assert speed.flops(shape, a_spec(), work)[1] == 4 * 2 * rows * (1 << 24) * 8
    whole = a_spec(training={"logitsChunkMiB": 0})
    assert speed.flops(shape, whole, work)[1] == 3 * 2 * rows * (1 << 24) * 8


def test_a_step_on_one_core() -> None:
    found = speed.estimate(small(), a_spec(), PAIRS, hardware.cpu(flops=1e6))
    assert found.micro_batches == 8
    assert found.body == pytest.approx(8 * 3 * (PRODUCTS + ATTENTION) / 1e6)
    assert found.head == pytest.approx(8 * 3 * HEAD / 1e6)
    assert found.reference == pytest.approx(8 * (PRODUCTS + ATTENTION + HEAD) / 1e6)
    assert found.overhead == 8 * 2 * speed.LAYER_OVERHEAD
    assert found.waiting == 0
    assert found.tokens == 48
    assert found.seconds == found.body + found.head + found.optimizer + found.overhead


def test_methods_without_a_reference_compute_none_and_kto_one_pass_more() -> None:
    dpo = speed.estimate(small(), a_spec(), PAIRS, hardware.cpu(1e6))
    simpo = speed.estimate(small(), a_spec(method={"name": "simpo"}), PAIRS, hardware.cpu(1e6))
    kto = speed.estimate(small(), a_spec(method={"name": "kto"}), PAIRS, hardware.cpu(1e6))
    assert (simpo.reference, simpo.body) == (0, dpo.body)
    assert kto.body + kto.head - dpo.body - dpo.head == pytest.approx(dpo.reference)


def test_the_routers_loss_takes_a_pass_more_with_several_micro_batches() -> None:
    def added(**training: int) -> float:
        without, counted = (
            speed.estimate(small(), a_spec(training=training | more), PAIRS, hardware.cpu(1e6))
            for more in ({}, {"routerAuxLoss": 0.01})
        )
        assert without.reference == counted.reference
        return (counted.body + counted.head - without.body - without.head) / without.reference

    assert added(globalBatchSize=8, microBatchSize=2) == pytest.approx(1)
    assert added(globalBatchSize=8, microBatchTokens=1 << 20) == pytest.approx(0)


def test_what_is_sent_is_hidden_behind_products_until_it_is_more() -> None:
    fast = qwen(80).time()
    assert fast.waiting == 0
    slow = dataclasses.replace(qwen(80, nodes=2), node_link=1e9).time()
    # Each rank receives 2 bytes of every weight twice, and 4 of every gradient, over the 8 ports of its node.
    job = qwen(80, nodes=2)
    sent = slow.micro_batches * 8 * job.shape.parameters * 15 / 16 / (8 * 1e9 * speed.NODE_SHARE)
    assert slow.waiting == pytest.approx(sent - speed.HIDDEN * (slow.body + slow.head))


def test_copies_in_nodes_and_smaller_gradients_send_less_between_nodes() -> None:
    options = {"hierarchicalPartition": True, "gradientReduction": "bf16"}
    job = dataclasses.replace(qwen(80, nodes=2, training=options), node_link=1e9)
    time, parameters = job.time(), job.shape.parameters
    # 2 bytes of every weight once and of every gradient between nodes, and every weight again from the 7 other GPUs of the node.
    between = 4 * parameters * 15 / 16 / (8 * 1e9 * speed.NODE_SHARE)
    inside = 2 * parameters * 7 / 8 / job.device.link
    sent = time.micro_batches * (between + inside)
    assert time.waiting == pytest.approx(sent - speed.HIDDEN * (time.body + time.head))


def test_several_gpus_and_adapters_cost_more_for_each_layer() -> None:
    one, several = qwen(140, gpus=1).time(), qwen(140, gpus=8).time()
    # Kernels are started while others run; what is left is 15%.
    left = 1 - speed.HIDDEN
    assert one.overhead == pytest.approx(left * one.micro_batches * 28 * speed.LAYER_OVERHEAD)
    assert several.overhead == pytest.approx(left * several.micro_batches * 28 * speed.LAYER_OVERHEAD_OF_SEVERAL)
    adapter = {"type": "lora", "rank": 1, "targetModules": ["q_proj"]}
    lora = qwen(140, gpus=8, adapter=adapter).time()
    assert lora.overhead == pytest.approx(2 * several.overhead)
    # Two thirds of the products, at 85% of the speed.
    assert lora.head == pytest.approx(several.head * 3 / 4 / speed.OF_ADAPTERS)


def test_calls_of_attention_for_each_pair_cost_time() -> None:
    whole, by_pair = (qwen(140, gpus=1, model={"name": "m", "attention": a}).time() for a in ("auto", "sdpa"))
    assert by_pair.overhead - whole.overhead == pytest.approx((1 - speed.HIDDEN) * 28 * 128 * speed.PAIR_OVERHEAD)


def test_small_products_wait_for_their_kernels() -> None:
    spec = a_spec(gpusPerNode=1, training={"precision": "bf16"})
    found = speed.estimate(small(), spec, PAIRS, hardware.GPUS["h100"])
    everything = found.micro_batches * 2 * speed.LAYER_OVERHEAD
    assert found.overhead == pytest.approx(everything, rel=1e-3)


def test_twice_the_ranks_take_half_the_time() -> None:
    assert qwen(80, gpus=4).time().body == pytest.approx(2 * qwen(80, gpus=8).time().body)
