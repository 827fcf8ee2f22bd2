"""Architectures that transformers builds: trained on two ranks, all weights and adapters, exported, merged, and loaded again."""

from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.export.test_export import _export
from tests.numerics.jobs import a_job, some_pairs, train_on_rank
from tests.numerics.model.test_expert_adapters import SIZES
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

EXPERTS = {"moe_intermediate_size": 24, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "olmo2": {},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": {},
    "glm4_moe": {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 8, "n_group": 1, "topk_group": 1},
    "olmoe": {"num_experts": 4},
    "llama4_text": {"num_key_value_heads": 2, "num_local_experts": 4, "head_dim": 8, "intermediate_size_mlp": 48, "attention_chunk_size": 32},
}  # fmt: skip
# CI has these families once, of which the first two have an adapter.
IN_CI = ("olmo2", "gpt_neox", "olmoe", "qwen3")
ADAPTED = IN_CI[:2]
CASES = [
    pytest.param(
        family,
        kind,
        marks=() if family in IN_CI and (kind == "adapter") == (family in ADAPTED) else pytest.mark.exhaustive,
    )
    for family in FAMILIES
    for kind in ("all weights", "adapter")
]


def make_family(folder: Path, family: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **SIZES | FAMILIES[family], pad_token_id=0, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def reloaded(root: Path, folder: Path) -> tuple[list[float], list[float], list[float]]:
    """Log-probs of the probe's pairs: what the engine had, under a folder loaded by transformers alone, and before training."""
    import torch
    from transformers import AutoModelForCausalLM

    from dpo_trainer.checkpoint.full import open_newest
    from dpo_trainer.data.dataset import PairDataset
    from dpo_trainer.export.check import answer_logps

    work = WorkDir(root)
    probe, data = open_newest(work.checkpoints)[0].state.probe, PairDataset.open(work.train_data)

    def logps(path: Path) -> list[float]:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        return [value for index in probe.pairs for value in answer_logps(model, data[index]).tolist()]

    return [value for pair in probe.logps for value in pair], logps(folder), logps(work.model)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_it_is_trained_exported_and_loaded_again(tmp_path: Path, family: str, kind: str):
    work = WorkDir(tmp_path)
    some_pairs(5).save(work.train_data)
    on_ranks(1, make_family, work.model, family)
    document = a_job(maxSteps=3, globalBatchSize=4, learningRate=5e-3)
    if kind == "adapter":
        document["spec"]["adapter"] = {"type": "lora", "rank": 4, "alpha": 16, "targetModules": ["all-linear"]}
        document["spec"]["training"]["learningRate"] = 2e-2
        document["spec"]["export"] = {"merge": True}
    got = on_ranks(2, train_on_rank, document, tmp_path)[0]
    assert got["steps"][0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert got["steps"][-1]["loss"] < got["steps"][0]["loss"]

    _export(document, work)
    [(engine, exported, before)] = on_ranks(
        1, reloaded, tmp_path, work.export / ("merged" if kind == "adapter" else "")
    )
    assert exported == pytest.approx(engine, abs=2e-4)
    assert max(abs(a - b) for a, b in zip(engine, before, strict=True)) > 0.01
