"""Time of sample answers, added up by hand."""

import pytest

from dpo_operator.api.models.hardware import Device
from dpo_operator.sizing import memory, sampling
from dpo_operator.sizing.sampling import LAYER_OVERHEAD
from tests.unit.sizing.build import PAIRS, PARAMETERS, a_spec, qwen, small

pytestmark = pytest.mark.unit

# 1,704 parameters in bf16 are read at 1,000 bytes a second, and sent at 10; products take no time.
DEVICE = Device("gpu", 1e12, 1e30, 1e30, 1e3, 10.0)
PASS = 2 * PARAMETERS / 1e3 + 2 * LAYER_OVERHEAD


def estimate(limit: float, gpus: int, **evaluation: int) -> sampling.Sampling:
    spec = a_spec(gpusPerNode=gpus, training={"precision": "bf16"}, evaluation=evaluation)
    device = Device(DEVICE.name, limit, DEVICE.flops, DEVICE.flops_fp32, DEVICE.bandwidth, DEVICE.link)
    return sampling.estimate(small(), spec, PAIRS, device, memory.estimate(small(), spec, PAIRS), node_link=1.0)


def test_one_rank_sends_nothing():
    # 12 tokens of evaluation.microBatchTokens hold no whole answer: each of three prompts is a batch of its own.
    found = estimate(1e12, 1, samples=3, sampleTokens=5)
    assert (found.tokens, found.whole) == (5, True)
    assert found.seconds == pytest.approx(3 * 5 * PASS)


def test_ranks_gather_the_model_once_and_share_the_prompts():
    found = estimate(1e12, 2, samples=3, sampleTokens=5)
    assert found.seconds == pytest.approx(2 * 5 * PASS + 2 * PARAMETERS / 2 / 10)


def test_without_room_each_token_gathers_it():
    found = estimate(1e3, 2, samples=3, sampleTokens=50)
    assert (found.tokens, found.whole) == (32, False)
    assert found.seconds == pytest.approx(2 * 32 * (PASS + 2 * PARAMETERS / 2 / 10))


def test_no_samples_take_no_time():
    assert estimate(1e12, 2, samples=0).seconds == 0
    assert qwen(80).sampling().seconds > 0
