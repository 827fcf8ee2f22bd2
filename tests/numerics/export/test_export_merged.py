"""export.merge: the folder `merged` is the trained policy as a plain model, and DoRA and rsLoRA come out as they were trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.commands import checkpoints
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.export.test_export import _as_bf16, _change_manifest, _export
from tests.numerics.interruptions import folder, job, train_until
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

DORA = {"dora": True, "rslora": True}
# Adapter, precision of the training, whether the model is kept in bf16.
KINDS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "lora": ({}, "fp32", False),
    "dora and rslora": (DORA, "fp32", False),
    "dora and rslora, bf16": (DORA, "bf16", True),
}


def prepared(root: Path, adapter: dict[str, Any], precision: str, *, bf16: bool, **training: Any) -> dict[str, Any]:
    """A work folder after training on two ranks, and its job."""
    work = folder(root)
    if bf16:
        on_ranks(1, _as_bf16, work.model)
    document = job(every_steps=100, lora=True, precision=precision)
    document["spec"]["training"] |= {"learningRate": 2e-2, **training}
    document["spec"]["adapter"] |= adapter
    document["spec"]["export"] = {"merge": True}
    on_ranks(2, train_until, document, root, 1)
    return document


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, WorkDir]:
    adapter, precision, bf16 = KINDS[request.param]
    root = tmp_path_factory.mktemp("merged")
    document = prepared(root, adapter, precision, bf16=bf16)
    _export(document, WorkDir(root))
    return request.param, document, WorkDir(root)


def compare(document: dict[str, Any], root: Path) -> dict[str, Any]:
    """Log-probs of the probe's pairs under the merged folder, loaded by transformers alone, and what the engine had."""
    from transformers import AutoModelForCausalLM

    from dpo_trainer.checkpoint.full import open_newest
    from dpo_trainer.data.dataset import PairDataset
    from dpo_trainer.export.check import answer_logps
    from dpo_trainer.model.load import DTYPES

    work = WorkDir(root)
    probe = open_newest(work.checkpoints)[0].state.probe
    data = PairDataset.open(work.train_data)
    dtype = DTYPES[document["spec"]["training"]["precision"]]

    def logps(path: Path) -> list[float]:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        return [value for index in probe.pairs for value in answer_logps(model, data[index]).tolist()]

    return {
        "expected": [value for pair in probe.logps for value in pair],
        "merged": logps(work.export / "merged"),
        "base": logps(work.model),
        "dtype": str(AutoModelForCausalLM.from_pretrained(work.export / "merged").dtype),
    }


def test_merged_weights_give_the_engines_log_probs(exported: tuple[str, Any, WorkDir]):
    kind, document, work = exported
    [found] = on_ranks(1, compare, document, work.root)
    exact = document["spec"]["training"]["precision"] == "fp32"
    tolerance = 1e-4 if exact else 0.3
    assert found["merged"] == pytest.approx(found["expected"], abs=tolerance)
    # Training has moved these log-probs much further than the tolerance, so equality is no accident.
    assert max(abs(a - b) for a, b in zip(found["merged"], found["base"], strict=True)) > 10 * tolerance
    assert found["dtype"] == ("torch.bfloat16" if KINDS[kind][2] else "torch.float32")


def test_the_folder_has_card_and_provenance(exported: tuple[str, Any, WorkDir]):
    kind, _, work = exported
    config = json.loads((work.export / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"]) == ((False, False) if kind == "lora" else (True, True))
    names = {path.relative_to(work.export).as_posix() for path in work.export.rglob("*") if path.is_file()}
    assert names == {
        "adapter_model.safetensors", "adapter_config.json", "README.md", "dpo_provenance.json",
        "merged/model.safetensors", "merged/config.json", "merged/generation_config.json", "merged/README.md",
    }  # fmt: skip
    card, merged = ((work.export / name).read_text() for name in ("README.md", "merged/README.md"))
    assert f"A {'LoRA' if kind == 'lora' else 'DoRA and rsLoRA'} adapter for `small`" in card
    assert "library_name: peft" in card
    assert "library_name: transformers" in merged
    assert "The adapter was merged into the model's weights" in merged
    provenance = json.loads((work.export / "dpo_provenance.json").read_text())
    assert provenance["files"].keys() == names - {"dpo_provenance.json"}
    assert provenance["merged"]["largest_difference_nats"] < (1e-4 if "bf16" not in kind else 1)


@pytest.mark.parametrize("exported", ["lora"], indirect=True)
def test_a_damaged_merged_model_is_replaced_and_an_unwanted_one_deleted(
    exported: tuple[str, Any, WorkDir], tmp_path: Path
):
    _, document, trained = exported
    shutil.copytree(trained.root, tmp_path / "run")
    work = WorkDir(tmp_path / "run")
    weights = work.export / "merged" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    _export(document, work)
    assert weights.read_bytes() == content
    made = weights.stat().st_mtime_ns
    _export(document, work)
    assert weights.stat().st_mtime_ns == made

    without = {**document, "spec": {**document["spec"], "export": {}}}
    _export(without, work)
    assert not weights.parent.exists()
    assert (work.export / "adapter_model.safetensors").is_file()


def test_a_merge_that_fails_leaves_the_adapters_export(tmp_path: Path):
    document = prepared(tmp_path, {}, "fp32", bf16=True, learningRate=1e-12)
    work = WorkDir(tmp_path)
    for _ in range(2):  # a second try merges again
        with pytest.raises(TrainerError, match="changes no weight, because bfloat16 is too coarse") as caught:
            _export(document, work)
        assert caught.value.exit_code is ExitCode.BAD_EXPORT
        step = work.checkpoints / "step-00000006"
        assert f"The adapter is exported to {work.export}, verified and ready to use" in str(caught.value)
        assert f"`dpo export {step} --no-merge`" in str(caught.value)
        assert not list(tmp_path.glob(".export*"))
        made = json.loads((work.export / "dpo_provenance.json").read_text())
        assert made["files"].keys() == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
        assert "merged" not in made

    (work.root / "job.json").write_text(json.dumps(document))
    argv = ["export-checkpoint", str(step), "--no-merge", "--to", str(tmp_path / "made")]
    assert on_ranks(1, checkpoints.main, argv) == [0]
    name = "adapter_model.safetensors"
    assert (tmp_path / "made" / name).read_bytes() == (work.export / name).read_bytes()


def test_dora_whose_matrices_learnt_nothing_is_refused(tmp_path: Path):
    document = prepared(tmp_path, DORA, "fp32", bf16=False, maxSteps=1, learningRate=1e-60)
    with pytest.raises(TrainerError, match="the adapter is empty or zero") as caught:
        _export(document, WorkDir(tmp_path))
    assert caught.value.exit_code is ExitCode.BAD_EXPORT


def test_a_checkpoint_without_a_probe_is_compared_with_its_adapter(exported: tuple[str, Any, WorkDir], tmp_path: Path):
    """Only evaluated and last checkpoints have log-probs of the engine."""
    _, document, work = exported
    shutil.copytree(work.root, tmp_path / "run")
    run = WorkDir(tmp_path / "run")
    _change_manifest(run, lambda manifest: manifest["state"].pop("probe") and manifest["state"].update(finished=""))
    (run.root / "job.json").write_text(json.dumps({**document, "spec": {**document["spec"], "export": {}}}))

    argv = ["export-checkpoint", str(run.checkpoints / "step-00000006"), "--merge", "--to", str(tmp_path / "made")]
    assert on_ranks(1, checkpoints.main, argv) == [0]

    card = (tmp_path / "made" / "merged" / "README.md").read_text()
    assert "pairs differ from those of the adapter before merging by at most" in card
    assert "The checkpoint has no log-probs to compare with." in (tmp_path / "made" / "README.md").read_text()
    # The same weights as in the export of the run.
    for name in ("adapter_model.safetensors", "merged/model.safetensors"):
        assert (tmp_path / "made" / name).read_bytes() == (work.export / name).read_bytes()
