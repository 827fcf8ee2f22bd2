"""model.adapter: training that starts from an adapter equals TRL's, on two ranks, and what is exported stands on what it says."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.export.test_export import _export
from tests.numerics.jobs import a_job, make_model, some_pairs, train_on_rank
from tests.numerics.losses.test_dpo_against_trl import EPOCHS, KEYS, LORA, PAIRS, STEPS, trl_training
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = pytest.mark.numerics


def make_sft_adapter(model: Path, folder: Path, settings: dict[str, Any]) -> None:
    """An adapter as PEFT saves it, that changes the model: with an alpha and modules that are no default."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    options = {"r": 6, "lora_alpha": 9, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **settings}
    torch.manual_seed(11)
    adapted = peft.get_peft_model(base, peft.LoraConfig(**options))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    adapted.save_pretrained(folder)


def prepared(root: Path, **settings: Any) -> WorkDir:
    """A work folder as prepare leaves it."""
    work = WorkDir(root)
    some_pairs(PAIRS).save(work.train_data)
    on_ranks(1, make_model, work.model)
    on_ranks(1, make_sft_adapter, work.model, work.model / "adapter", settings)
    return work


def a_started_job(train: str, **training: Any) -> dict[str, Any]:
    document = a_job(epochs=EPOCHS, shuffle=False, learningRate=2e-2, **training)
    document["spec"]["model"]["adapter"] = {"name": "sft", "train": train}
    document["spec"]["adapter"] = LORA if train == "new" else {"type": "lora"}
    document["spec"]["export"] = {"merge": True}
    return document


def as_a_user_loads_it(work: WorkDir, train: str) -> dict[str, list[float]]:
    """Log-probs of the probe's pairs: what the engine had, base + adapters by PEFT, merged, the start, and the base alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from dpo_trainer.checkpoint.full import open_newest
    from dpo_trainer.data.dataset import PairDataset
    from dpo_trainer.export.check import answer_logps
    from dpo_trainer.model.adapters import without_trained

    probe, data = open_newest(work.checkpoints)[0].state.probe, PairDataset.open(work.train_data)

    def logps(model: Any) -> list[float]:
        return [value for index in probe.pairs for value in answer_logps(model.eval(), data[index]).tolist()]

    def base(folder: Path = work.model) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    if train == "same":
        adapted = PeftModel.from_pretrained(base(), work.export)
    else:  # as the model card says
        adapted = PeftModel.from_pretrained(base(), work.export / "start", adapter_name="start")
        adapted.load_adapter(work.export, "default")
        adapted.base_model.set_adapter(["start", "default"])
    trained = [parameter.requires_grad for parameter in adapted.parameters()]
    with without_trained(adapted):
        without = logps(adapted)
    assert [parameter.requires_grad for parameter in adapted.parameters()] == trained
    return {
        "engine": [value for pair in probe.logps for value in pair],
        "adapted": logps(adapted),
        "without": without,
        "merged": logps(base(work.export / "merged")),
        "start": logps(PeftModel.from_pretrained(base(), work.model / "adapter")),
        "base": logps(base()),
    }


@pytest.mark.parametrize("train", [pytest.param("same", marks=pytest.mark.exhaustive), "new"])
def test_two_ranks_equal_trl_and_the_export_is_the_policy(tmp_path: Path, train: str):
    work = prepared(tmp_path / "ours")
    document = a_started_job(train)
    got = on_ranks(2, train_on_rank, document, work.root)[0]
    lora = LORA if train == "new" else None
    start = (work.model / "adapter", train)
    [theirs] = on_ranks(1, trl_training, work.model, some_pairs(PAIRS), tmp_path / "trl", lora, start)

    assert got["warnings"] == []
    assert len(got["steps"]) == len(theirs) == STEPS
    assert got["steps"][0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    for mine, trl in zip(got["steps"], theirs, strict=True):
        for key in KEYS:
            assert mine[key] == pytest.approx(trl[key], abs=1e-4, rel=1e-5), (mine["step"], key)
    assert got["steps"][-1]["loss"] < 0.6

    _export(document, work)
    [found] = on_ranks(1, as_a_user_loads_it, work, train)
    for kind in ("adapted", "merged"):
        assert found[kind] == pytest.approx(found["engine"], abs=1e-4), kind
    # Without what was trained: an adapter that is frozen stays on.
    assert found["without"] == pytest.approx(found["start" if train == "new" else "base"], abs=1e-4)
    for other in ("start", "base"):
        assert max(abs(a - b) for a, b in zip(found["engine"], found[other], strict=True)) > 0.1
    config = json.loads((work.export / "adapter_config.json").read_text())
    shape = (config["r"], config["lora_alpha"], sorted(config["target_modules"]))
    assert shape == ((6, 9.0, ["down_proj", "q_proj"]) if train == "same" else (4, 8.0, ["q_proj", "v_proj"]))
    card, provenance = (
        (work.export / "README.md").read_text(),
        json.loads((work.export / "dpo_provenance.json").read_text()),
    )
    assert ("takes the other's place" if train == "same" else "This adapter stands on both") in card
    assert provenance["stands_on"]["adapter"]["name"] == "sft"
    assert (work.export / "start" / "adapter_model.safetensors").is_file() == (train == "new")


def test_what_the_model_or_the_adapter_can_not_do_is_refused(tmp_path: Path):
    def refusal(work: WorkDir, train: str, **adapter: Any) -> str:
        document = a_started_job(train)
        document["spec"]["adapter"] |= adapter
        with pytest.raises(RankFailed) as caught:
            on_ranks(1, train_on_rank, document, work.root)
        assert caught.value.kind == "TrainerError"
        return str(caught.value)

    dora = prepared(tmp_path / "dora", use_dora=True)
    assert "new is not possible, because DoRA scales a weight by one adapter; use same" in refusal(dora, "new")
    # The same adapter under a model with other widths.
    on_ranks(1, make_wider_model, dora.model)
    assert "spec.model.adapter: the adapter does not fit spec.model: " in refusal(dora, "same")


def make_wider_model(folder: Path) -> None:
    make_model(folder, head_dim=16)
