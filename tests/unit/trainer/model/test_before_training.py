"""A job that asks for the routers' loss is refused in prepare when the model has none, with what was found."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.model.before_training import check
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry

pytestmark = pytest.mark.unit

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_experts_per_tok": 2,
}  # fmt: skip
SPEC = DPOJobSpec.model_validate(
    {"model": {"name": "m"}, "data": {"train": {"source": "d"}}, "training": {"routerAuxLoss": 0.01}}
)


def said(folder: Path, config: dict[str, Any]) -> list[str]:
    work = WorkDir(folder)
    work.model.mkdir()
    (work.model / "config.json").write_text(json.dumps(SIZES | config))
    texts: list[str] = []
    check(SPEC, work, Telemetry("prepare", 1, work), lambda text, _: texts.append(text))
    return texts


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "llama"}, "LlamaForCausalLM with no router"),
        (
            {
                "model_type": "glm4_moe",
                "first_k_dense_replace": 0,
                "n_routed_experts": 4,
                "n_group": 1,
                "topk_group": 1,
            },
            "Glm4MoeForCausalLM with 2 routers of another kind",
        ),
    ],
)
def test_a_model_without_such_routers_is_refused(tmp_path: Path, config: dict[str, Any], found: str) -> None:
    with pytest.raises(TrainerError, match=found) as failure:
        said(tmp_path, config)
    assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION
    assert "leave the field out" in str(failure.value)


@pytest.mark.parametrize(
    ("config", "top_k"),
    [
        ({"model_type": "mixtral", "num_local_experts": 4}, 2),
        ({"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 3, "head_dim": 8}, 3),
        ({"model_type": "olmoe", "num_experts": 4}, 2),
        ({"model_type": "gpt_oss", "num_local_experts": 4, "head_dim": 8}, 2),
    ],
)
def test_routers_are_found_and_named(tmp_path: Path, config: dict[str, Any], top_k: int) -> None:
    assert said(tmp_path, config) == [f"the auxiliary loss is of 2 routers, which choose {top_k} experts for a token"]
