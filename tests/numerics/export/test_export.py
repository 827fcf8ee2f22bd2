"""The exported folder, loaded by transformers or PEFT alone, is the trained policy; anything else is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import Termination
from dpo_operator.api.types import DPOJob
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.interruptions import folder, job, train_until
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = pytest.mark.numerics

KINDS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "all weights, bf16": {"precision": "bf16"},
    "adapter": {"lora": True},
    "adapter, bf16": {"lora": True, "precision": "bf16"},
}
# CI has both kinds and both precisions once; test_architectures.py exports all weights in fp32.
EXHAUSTIVE = ("all weights", "adapter, bf16")
CASES = [pytest.param(kind, marks=[pytest.mark.exhaustive] if kind in EXHAUSTIVE else []) for kind in KINDS]


@pytest.fixture(scope="module", params=CASES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A job and its work folder after training on two ranks."""
    root = tmp_path_factory.mktemp("trained")
    folder(root)
    document = job(every_steps=100, **KINDS[request.param])
    document["spec"]["training"]["learningRate"] = 2e-2
    on_ranks(2, _train, document, root)
    return document, root


@pytest.fixture
def work(trained: tuple[dict[str, Any], Path], tmp_path: Path) -> tuple[dict[str, Any], WorkDir]:
    """A copy that a test may damage."""
    shutil.copytree(trained[1], tmp_path / "run")
    return trained[0], WorkDir(tmp_path / "run")


def test_it_gives_the_engines_log_probs(work: tuple[dict[str, Any], WorkDir]):
    document, folder_ = work
    path = _export(document, folder_)

    assert path == "export"
    precision = document["spec"]["training"]["precision"]
    [(found, expected, before)] = on_ranks(1, _compare, document, folder_.root)
    tolerance = 1e-4 if precision == "fp32" else 0.3
    assert found == pytest.approx(expected, abs=tolerance)
    # Training has moved these log-probs much further than the tolerance, so equality is no accident.
    assert max(abs(a - b) for a, b in zip(found, before, strict=True)) > 10 * tolerance


def test_the_folder_is_complete_and_has_its_provenance(work: tuple[dict[str, Any], WorkDir]):
    document, folder_ = work
    _export(document, folder_)
    names = {entry.name for entry in folder_.export.iterdir()}
    weights = {"adapter_model.safetensors", "adapter_config.json"} if "adapter" in document["spec"] else {
        "model.safetensors", "config.json", "generation_config.json",
    }  # fmt: skip

    assert names == weights | {"README.md", "dpo_provenance.json"}
    card = (folder_.export / "README.md").read_text()
    assert 'base_model: "small"' in card
    assert "| reward margin |" in card
    provenance = json.loads((folder_.export / "dpo_provenance.json").read_text())
    assert provenance["checkpoint"]["step"] == 6
    assert not list(folder_.root.glob("*.tmp"))


@pytest.mark.parametrize("trained", ["adapter"], indirect=True)
def test_the_phase_writes_a_report_and_never_fails_because_of_it(work: tuple[dict[str, Any], WorkDir], tmp_path: Path):
    document, folder_ = work
    folder_.report.write_text("a file, where a folder is wanted")
    said, words = _export_phase(document, folder_, tmp_path)
    assert (words.exit_code, words.export_path) == (ExitCode.OK, "export")
    assert "Warning: NoReport: The report could not be written" in said
    assert (folder_.export / "dpo_provenance.json").is_file()

    folder_.report.unlink()
    said, words = _export_phase(document, folder_, tmp_path)
    assert (words.exit_code, words.export_path) == (ExitCode.OK, "export")
    assert "already exported" in said
    assert "Warning" not in said
    assert "reward margin" in (folder_.report / "report.txt").read_text()
    assert (folder_.report / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_keeps_the_export_and_replaces_a_damaged_one(work: tuple[dict[str, Any], WorkDir]):
    document, folder_ = work
    _export(document, folder_)
    weights = next(folder_.export.glob("*model.safetensors"))
    made, content = weights.stat().st_mtime_ns, weights.read_bytes()

    _export(document, folder_)
    assert weights.stat().st_mtime_ns == made

    weights.write_bytes(content[:-1])
    _export(document, folder_)
    assert weights.read_bytes() == content


def test_a_model_larger_than_memory_gives_the_same_export(work: tuple[dict[str, Any], WorkDir]):
    document, folder_ = work
    _export(document, folder_)
    expected = _tensors(folder_.export)
    shutil.rmtree(folder_.export)

    [found] = on_ranks(1, _export_as_large, document, folder_.root)

    assert _tensors(folder_.export) == expected
    whole = "adapter" not in document["spec"]
    assert (len(list(folder_.export.glob("*.safetensors"))) > 1) == whole
    # The shortest two of the probe's pairs were compared in one pass, and no weight of the base stayed in memory.
    assert (found["pairs"], found["passes"]) == (2, 1)
    assert found["in memory"] == 0
    tolerance = 1e-4 if document["spec"]["training"]["precision"] == "fp32" else 0.3
    assert found["difference"] < tolerance


def _tensors(folder_: Path) -> dict[str, list[Any]]:
    """Every number of a folder's weight files, by name."""
    from safetensors.torch import load_file

    return {name: tensor.tolist() for file in folder_.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_a_policy_with_other_log_probs_is_refused(work: tuple[dict[str, Any], WorkDir]):
    document, folder_ = work

    def worse(manifest: dict[str, Any]) -> None:
        manifest["state"]["probe"]["logps"][2][1] += 3.0

    _change_manifest(folder_, worse)
    with pytest.raises(TrainerError, match="for the rejected answer of train pair 2") as caught:
        _export(document, folder_)

    assert caught.value.exit_code is ExitCode.BAD_EXPORT
    assert not folder_.export.exists()


def test_training_that_has_not_ended_is_not_exported(work: tuple[dict[str, Any], WorkDir]):
    document, folder_ = work
    _change_manifest(folder_, lambda manifest: manifest["state"].update(finished=""))
    with pytest.raises(TrainerError, match="train to the end first") as caught:
        _export(document, folder_)

    assert caught.value.exit_code is ExitCode.INPUT_NOT_FOUND


def test_an_adapter_that_learnt_nothing_is_refused(tmp_path: Path):
    folder(tmp_path)
    document = job(every_steps=100, lora=True)
    # An update too small for any float32.
    document["spec"]["training"].update(maxSteps=1, learningRate=1e-60)
    on_ranks(1, _train, document, tmp_path)

    with pytest.raises(TrainerError, match="the adapter is empty or zero") as caught:
        _export(document, WorkDir(tmp_path))
    assert caught.value.exit_code is ExitCode.BAD_EXPORT


@pytest.mark.parametrize("named", [True, False], ids=["dtype in the configuration", "dtype of the weights alone"])
def test_a_bf16_model_trained_in_fp32_is_exported_in_bf16(tmp_path: Path, named: bool):
    work = folder(tmp_path)
    on_ranks(1, _as_bf16, work.model)
    if not named:
        config = json.loads((work.model / "config.json").read_text())
        (work.model / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "dtype"}))
    document = job(every_steps=100)
    on_ranks(2, _train, document, tmp_path)

    _export(document, work)

    content = (work.export / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}


def _as_bf16(model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(model)


def _train(document: dict[str, Any], root: Path) -> dict[str, Any]:
    return train_until(document, root, 1)


def _export(document: dict[str, Any], work: WorkDir) -> str:
    try:
        return on_ranks(1, _export_there, document, work.root)[0]
    except RankFailed as failure:
        if failure.kind == "TrainerError":
            code = next(c for c in ExitCode if f"exit code {int(c)} of {c.name}" in str(failure))
            raise TrainerError(code, str(failure)) from failure
        raise


def _export_phase(document: dict[str, Any], work: WorkDir, temporary: Path) -> tuple[str, Termination]:
    """Run the export phase as its pod does; returns its log and its termination message."""
    job_file, log = temporary / "job.json", temporary / "termination.json"
    job_file.write_text(json.dumps(document))
    done = subprocess.run(
        [sys.executable, "-m", "dpo_trainer", "export", "--job-file", str(job_file), "--work-dir", str(work.root)],
        env={**os.environ, "DPO_METRICS_PORT": "0", "DPO_TERMINATION_LOG": str(log)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    words = Termination.from_text(log.read_text())
    assert words is not None, done.stderr
    return done.stdout + done.stderr, words


def _export_there(document: dict[str, Any], root: Path) -> str:
    from dpo_trainer.export import phase

    try:
        return phase.run(DPOJob.model_validate(document), WorkDir(root), progress=print)
    except TrainerError as error:
        raise TrainerError(
            error.exit_code, f"{error} (exit code {int(error.exit_code)} of {error.exit_code.name})"
        ) from error


def _export_as_large(document: dict[str, Any], root: Path) -> dict[str, Any]:
    """Export as if the model were too large for memory and for one file; what was in memory of it."""
    from dpo_trainer.export import check, files

    found: dict[str, Any] = {"passes": 0}
    check.LARGE, files._SHARD_SIZE = 0, 20_000
    together, compare = check.answers_together, check.check_probe

    def answers_together(model: Any, pairs: Any) -> Any:
        found["passes"] += 1
        found["pairs"] = len(pairs)
        return together(model, pairs)

    def check_probe(model: Any, *rest: Any) -> float:
        found["difference"] = compare(model, *rest)
        found["in memory"] = sum(p.numel() for p in model.parameters() if not p.is_meta)
        return found["difference"]

    check.answers_together = answers_together
    from dpo_trainer.export import phase

    phase.check_probe = check_probe
    _export_there(document, root)
    return found


def _compare(document: dict[str, Any], root: Path) -> tuple[list[float], list[float], list[float]]:
    """Log-probs under the export, what the engine had, and those under the model before training."""
    from dpo_trainer.checkpoint.full import open_newest
    from dpo_trainer.data.dataset import PairDataset
    from dpo_trainer.export.check import answer_logps, load_exported

    work, precision = WorkDir(root), document["spec"]["training"]["precision"]
    probe = open_newest(work.checkpoints)[0].state.probe
    data = PairDataset.open(work.train_data)

    def logps(base: Path, folder: Path) -> list[float]:
        model = load_exported(base, folder, precision)
        return [value for index in probe.pairs for value in answer_logps(model, data[index]).tolist()]

    expected = [value for pair in probe.logps for value in pair]
    return logps(work.model, work.export), expected, logps(work.model, work.model)


def _change_manifest(work: WorkDir, change: Any) -> None:
    path = work.checkpoints / "step-00000006" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
