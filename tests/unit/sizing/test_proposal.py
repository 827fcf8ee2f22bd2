"""Whether a job fits, and what is proposed."""

from typing import Any

import pytest
import yaml

from dpo_operator.api.models import hardware
from dpo_operator.api.quantity import gibibytes, to_bytes
from dpo_operator.api.rules import spec as rules
from dpo_operator.api.rules import support
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_operator.sizing.proposal import Job, Option, fastest, lines, smallest_change, too_many_gpus
from tests.unit.sizing.build import PAIRS, a_spec, qwen, small

pytestmark = pytest.mark.unit

# GiB, and settings, of jobs that do not fit, and a word of what makes them.
TIGHT: list[tuple[float, dict[str, Any], str]] = [
    (48, {"training": {"microBatchTokens": 65536}}, "microBatchTokens"),
    (40, {"training": {"gradientCheckpointing": False, "microBatchTokens": 3584}}, "gradientCheckpointing: true"),
    (24, {}, "offload: cpu"),
    (22, {"training": {"optimizer": "adamw-8bit"}}, "nodes: 2"),
]


def with_lines(job: Job, option: Option) -> DPOJobSpec:
    """The job's spec with the proposal's YAML pasted over it."""
    document = job.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    for key, value in yaml.safe_load(lines(option)).items():
        document[key] = document[key] | value if isinstance(value, dict) else value
    return DPOJobSpec.model_validate(document)


@pytest.mark.parametrize(("memory", "settings", "words"), TIGHT, ids=[words for _, _, words in TIGHT])
def test_the_smallest_change_fits_and_is_a_valid_job(memory: float, settings: dict[str, Any], words: str) -> None:
    job = qwen(memory, **settings)
    assert not job.fits()
    change = smallest_change(job)
    assert change is not None
    assert words in lines(change)
    assert change.memory.peak <= 0.9 * job.limit
    pasted = with_lines(job, change)
    assert Job(pasted, job.shape, job.pairs, job.device).memory().peak == change.memory.peak
    whole = DPOJob.model_validate({"metadata": {"name": "a"}, "spec": pasted.model_dump(by_alias=True)})
    assert rules.violations(whole) == []
    assert support.unsupported(pasted) == []


def test_nothing_helps_where_nothing_can() -> None:
    assert smallest_change(qwen(2, training={"globalBatchSize": 8})) is None
    assert fastest(qwen(2)) is None


def test_adapters_are_the_last_thing_that_is_proposed() -> None:
    job = qwen(79, gpus=1, training={"optimizer": "adamw-8bit", "globalBatchSize": 1})
    change = smallest_change(job)
    assert change is not None
    assert yaml.safe_load(lines(change))["adapter"] == {"type": "lora"}


def test_a_base_in_four_bits_is_proposed_where_lora_does_not_fit() -> None:
    adapter = {"type": "lora", "rank": 8, "targetModules": ["q_proj"]}
    job = qwen(14, gpus=1, adapter=adapter, training={"globalBatchSize": 1})
    assert not job.fits()
    change = smallest_change(job)
    assert change is not None
    assert change.changes["adapter.type"] == "qlora"
    assert smallest_change(qwen(14, gpus=1, adapter=adapter | {"dora": True}, training={"globalBatchSize": 1})) is None


def test_the_fastest_fits_and_is_not_slower_than_the_job() -> None:
    for memory in (48, 79, 140):
        job = qwen(memory)
        best = fastest(job)
        assert best is not None
        assert best.memory.peak <= 0.9 * job.limit
        if job.fits(0.9):
            assert best.time.seconds <= job.time().seconds / 0.98
    # Where memory abounds nothing is computed twice.
    assert fastest(qwen(140)).changes["training.gradientCheckpointing"] is False  # type: ignore[union-attr]


def test_state_is_not_offloaded_to_free_memory() -> None:
    adapter = {"type": "lora", "rank": 16, "targetModules": ["all-linear"]}
    best = fastest(qwen(140, gpus=1, adapter=adapter))
    assert best is not None
    assert "training.offload" not in best.changes


def test_too_many_gpus_for_a_batch_are_said() -> None:
    assert too_many_gpus(qwen(79, gpus=8)) == ""
    said = too_many_gpus(qwen(79, gpus=8, nodes=16, training={"globalBatchSize": 128}))
    assert said.startswith("Too many GPUs for this batch: each has 1 pairs and 1,536 tokens")
    assert "about 48 would do" in said


def test_a_four_bit_base_is_whole_on_every_gpu() -> None:
    adapter = {"type": "qlora", "rank": 16, "targetModules": ["all-linear"]}
    alone, two = (qwen(79, gpus=gpus, adapter=adapter).memory().lasting for gpus in (1, 2))
    embeddings = 2 * 152064 * 3584
    layers = 28 * (3584 * (3584 + 2 * 512 + 3584) + 3 * 3584 * 18944)
    assert alone["4-bit base"] == two["4-bit base"] == pytest.approx(0.516 * layers, rel=1e-3)
    assert 2 * embeddings < alone["weights"] < 2.2 * embeddings
    lora = qwen(79, gpus=1, adapter=adapter | {"type": "lora"}).memory()
    assert lora.lasting["weights"] > 3 * (alone["4-bit base"] + alone["weights"]) / 2


def test_a_bound_on_pairs_moves_with_the_budget() -> None:
    job = qwen(24, training={"microBatchSize": 1})
    best = fastest(qwen(140, training={"microBatchSize": 1}))
    assert best is not None
    one = job.pairs.tokens("shared")
    assert best.changes["training.microBatchSize"] == best.changes["training.microBatchTokens"] // one


@pytest.mark.parametrize(
    ("text", "size"), [("80Gi", 80 * 2**30), ("1.5G", 1.5e9), ("1024", 1024), ("64Mi", 2**26), ("2k", 2000)]
)
def test_quantities(text: str, size: float) -> None:
    assert to_bytes(text) == size


@pytest.mark.parametrize("text", ["", "80 Gi", "80gb", "-1Gi", "1e9", "Gi"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="expected an amount such as 80Gi, found"):
        to_bytes(text)


def test_sizes_for_people() -> None:
    assert (gibibytes(1.5 * 2**30), gibibytes(2**20)) == ("1.5 GiB", "1 MiB")


def test_the_whole_run_counts_kept_pairs_and_rankings() -> None:
    def a_job(**training: Any) -> Job:
        return Job(a_spec(training=training), small(), PAIRS, hardware.Device("cpu", None, 1e9, 1e9, 1e9, 1e9))

    # 100 pairs in steps of 8: 13 of which 1 is warm-up; of 92 left 46 are kept, in 6 steps.
    half = {"by": "rewardGap", "keep": {"quantiles": [0.5, 1.0]}}
    assert a_job().steps() == 100 / 8
    assert a_job(selection=half).steps() == 1 + 6
    once, each = a_job(selection=half), a_job(selection=half | {"refresh": "epoch"}, epochs=2.0)
    assert (a_job().ranking(), a_job(selection={"by": "scoreGap"}).ranking()) == (0, 0)
    assert once.ranking() == pytest.approx(92 / 8 * once.time().ranking)
    assert each.ranking() == pytest.approx(192 / 8 * each.time().ranking)
    assert once.time().ranking > 0
