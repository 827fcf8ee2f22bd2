"""Adapters over a 4-bit base: against PEFT and bitsandbytes without DeepSpeed, resumed, exported and merged."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.types import DPOJob
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import a_job, make_model, plain_training, some_pairs, train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

STEPS = 20
KEYS = ("step", "loss", "rewards/margins", "logps/chosen", "grad_norm")


def a_qlora_job(**training: Any) -> dict[str, Any]:
    document = a_job(maxSteps=STEPS, **training)
    document["spec"]["adapter"] = {"type": "qlora", "rank": 4, "alpha": 8, "targetModules": ["all-linear"]}
    document["spec"]["gpusPerNode"] = 0
    return document


def train(
    document: dict[str, Any], root: Path, attempt: int = 1, stop: tuple[int, int] | None = None
) -> list[list[Any]]:
    run = train_on_rank(document, root, attempt, stop)
    assert run["warnings"] == []
    return [[line[key] for key in KEYS] for line in run["steps"]]


def held(document: dict[str, Any], model: Path) -> dict[str, int]:
    """What a rank holds, and whether a 4-bit weight is a parameter."""
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine

    engine = Engine(DPOJob.model_validate(document).spec, model, join_world("cpu"))
    packed = sum(str(p.dtype) == "torch.uint8" for p in engine.module.parameters())
    return {**engine.partition_report(), "packed": packed}


def exported(document: dict[str, Any], root: Path) -> list[str]:
    """Export a run's model; what the export reported."""
    from dpo_trainer.export import phase

    work, said = WorkDir(root), []
    phase.run(DPOJob.model_validate(document), work, progress=said.append)
    return said


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    work = WorkDir(tmp_path_factory.mktemp("qlora"))
    some_pairs(21).save(work.train_data)
    on_ranks(1, make_model, work.model)
    return work


def test_losses_are_those_of_peft_and_bitsandbytes(work: WorkDir, tmp_path: Path):
    document = a_qlora_job()
    document["spec"]["export"] = {"merge": True}
    shutil.copytree(work.root, tmp_path / "one")
    plain = on_ranks(1, plain_training, document, work.model, PairDataset.open(work.train_data), STEPS)[0]
    one = on_ranks(1, train, document, tmp_path / "one")[0]
    assert one[0][1] == pytest.approx(math.log(2), abs=1e-3)
    assert [line[1] for line in one] == pytest.approx([step["loss"] for step in plain["steps"]], abs=1e-3)
    assert plain["steps"][-1]["loss"] < 0.68

    # The adapter over the 4-bit base has the policy's log-probs, and the merged model those of the adapter over the base in 16 bits.
    on_ranks(1, exported, document, tmp_path / "one")
    folder = WorkDir(tmp_path / "one").export
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    assert (folder / "merged" / "model.safetensors").is_file()
    assert "QLoRA of rank 4" in (folder / "README.md").read_text()


@pytest.mark.exhaustive
def test_two_ranks_hold_the_base_whole_and_resume(work: WorkDir, tmp_path: Path):
    document = a_qlora_job(precision="bf16", gradientCheckpointing=True)
    for name in ("straight", "broken"):
        shutil.copytree(work.root, tmp_path / name)
    for report in on_ranks(2, held, document, work.model):
        assert report["packed"] == 0
        # q, k, v, o, gate, up and down of two layers.
        assert report["four_bit"] == 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 48)
        assert report["trainable"] < report["total"] / 2
    straight = on_ranks(2, train, document, tmp_path / "straight")[0]
    on_ranks(2, train, document, tmp_path / "broken", 1, (1, 9))
    assert on_ranks(2, train, document, tmp_path / "broken", 2)[0] == straight
    assert straight[0][1] == pytest.approx(math.log(2), abs=2e-2)


def bytes_of_a_wide_base(folder: Path) -> tuple[float, float]:
    """Bytes of a 4-bit base, and of a whole model that has it, as shares of bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dpo_trainer.model import quantized
    from dpo_trainer.model.load import load_model

    config = LlamaConfig(
        vocab_size=96, hidden_size=256, intermediate_size=768, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    model = load_model(DPOJob.model_validate(a_qlora_job(precision="bf16")).spec, folder)
    elements, size = quantized.size(model)
    rest = [p for p in model.parameters() if not p.requires_grad]
    assert {p.dtype for p in rest} == {torch.bfloat16}
    kept = sum(p.numel() for p in rest)
    return size / (2 * elements), (size + 2 * kept) / (2 * (elements + kept))


def test_the_base_takes_a_third_of_bf16(tmp_path: Path):
    [(layers, whole)] = on_ranks(1, bytes_of_a_wide_base, tmp_path / "model")
    assert layers < 0.27
    assert whole <= 0.35
