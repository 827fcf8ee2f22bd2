"""Adapters on experts: under ZeRO-3 they train as with PEFT alone, they are exported, and they are merged."""

from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.export.test_export import _export
from tests.numerics.export.test_export_merged import compare
from tests.numerics.jobs import VOCABULARY, a_job, plain_training, some_pairs, train_on_rank
from tests.numerics.model.test_adapters import final_weights
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

PAIRS, STEPS = 9, 5
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.15, "num_experts_per_tok": 2,
}  # fmt: skip
# DeepSeek also has a dense layer and a shared expert, whose layers' names PEFT would take for those of experts. GPT-OSS keeps
# experts' matrices the other way round.
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_key_value_heads": 2},
    "deepseek_v3": {
        "num_key_value_heads": 4, "moe_intermediate_size": 24, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    },
    "gpt_oss": {"num_local_experts": 4, "num_key_value_heads": 2, "head_dim": 8},
}  # fmt: skip
ADAPTED = {
    "mixtral": {"experts", "q_proj"},
    "deepseek_v3": {"experts", "kv_b_proj", "shared_experts.down_proj", "mlp.gate_proj"},
    "gpt_oss": {"experts", "q_proj"},
}


def make_moe(folder: Path, family: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **SIZES | MODELS[family], pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize(
    "family", ["mixtral", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("deepseek_v3", "gpt_oss"))]
)
def test_experts_train_as_with_peft_alone_and_are_exported_and_merged(tmp_path: Path, family: str):
    work = WorkDir(tmp_path)
    some_pairs(PAIRS).save(work.train_data)
    on_ranks(1, make_moe, work.model, family)
    document = a_job(maxSteps=STEPS, globalBatchSize=4, learningRate=2e-2, gradientCheckpointing=True)
    document["spec"]["adapter"] = {"type": "lora", "rank": 4, "alpha": 16, "targetModules": ["all-linear"]}
    document["spec"]["export"] = {"merge": True}

    [expected] = on_ranks(1, plain_training, document, work.model, some_pairs(PAIRS), STEPS)
    got = on_ranks(2, train_on_rank, document, tmp_path)[0]
    for line, step in zip(got["steps"], expected["steps"], strict=True):
        for key in ("loss", "rewards/margins", "grad_norm"):
            assert line[key] == pytest.approx(step[key], abs=1e-4, rel=1e-4), (line["step"], key)
    assert got["steps"][-1]["loss"] < got["steps"][0]["loss"] - 0.05
    [weights] = on_ranks(1, final_weights, tmp_path)
    assert weights.keys() == expected["weights"].keys()
    for part in ADAPTED[family]:
        assert any(f".{part}." in name for name in weights), part
    # Every second matrix starts as zero: a gradient reached each.
    assert all(value.any() for name, value in weights.items() if "lora_B" in name)

    _export(document, work)
    [found] = on_ranks(1, compare, document, work.root)
    assert found["merged"] == pytest.approx(found["expected"], abs=1e-4)
    assert max(abs(a - b) for a, b in zip(found["merged"], found["base"], strict=True)) > 1e-2
