"""Which checkpoint is exported: the best one when the job asks for it, the next best when that one is gone or damaged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.export.test_export import _change_manifest, _export
from tests.numerics.interruptions import folder, job, train_until
from tests.numerics.jobs import some_pairs
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Six steps that are all evaluated and kept, with so high a rate that the last is not the best."""
    root = tmp_path_factory.mktemp("best")
    work = folder(root, layers=2)
    some_pairs(4, seed=5).save(work.eval_data)
    document = job(every_steps=1, keep_last=10, learningRate=0.2, scheduler="constant", warmupRatio=0.0)
    document["spec"]["data"]["evalFraction"] = 0.5
    document["spec"]["evaluation"] = {"everySteps": 1, "samples": 0}
    document["spec"]["export"] = {"checkpoint": "best"}
    on_ranks(2, train_until, document, root, 1)
    return document, root


@pytest.fixture
def work(trained: tuple[dict[str, Any], Path], tmp_path: Path) -> WorkDir:
    shutil.copytree(trained[1], tmp_path / "run")
    return WorkDir(tmp_path / "run")


def ranking(work: WorkDir) -> list[tuple[float, int]]:
    """Cost and step of every evaluation as metrics.jsonl has them, the best first."""
    lines = [json.loads(line) for line in work.metrics.read_text().splitlines()]
    return sorted((line["eval_loss"], line["step"]) for line in lines if "eval_loss" in line)


def export_and_listen(document: dict[str, Any], root: Path) -> list[str]:
    """Log lines of the export."""
    from dpo_operator.api.types import DPOJob
    from dpo_trainer.export import phase

    said: list[str] = []
    phase.run(DPOJob.model_validate(document), WorkDir(root), progress=said.append)
    return said


def exported(work: WorkDir) -> tuple[int, str, str]:
    """Step, reason and model card of the export."""
    checkpoint = json.loads((work.export / "dpo_provenance.json").read_text())["checkpoint"]
    return checkpoint["step"], checkpoint["chosen_as"], (work.export / "README.md").read_text()


def test_card_and_provenance_name_the_best_step(trained: tuple[dict[str, Any], Path], work: WorkDir):
    (cost, best), *_ = ranking(work)
    assert best != 6, "the test needs a run whose last step is not its best"
    _export(trained[0], work)

    step, why, card = exported(work)
    assert step == best
    assert why == f"the best eval_loss, {cost:.4f}"
    assert f"| exported | step {best}: {why} |" in card
    # The card has the metrics of the exported step, not of later steps.
    assert f"held out, step {best} |" in card
    assert "step 6" not in card


def test_the_last_step_is_exported_if_the_job_asks_for_it(trained: tuple[dict[str, Any], Path], work: WorkDir):
    document = {**trained[0], "spec": {**trained[0]["spec"], "export": {"checkpoint": "last"}}}
    _export(document, work)
    step, why, card = exported(work)
    assert (step, why) == (6, "the last step")
    assert "| exported | step 6: the last step |" in card


@pytest.mark.parametrize("how", ["removed", "damaged"])
def test_without_the_best_the_next_best_is_exported_and_the_log_has_why(
    trained: tuple[dict[str, Any], Path], work: WorkDir, how: str
):
    (_, best), (cost, second), *_ = ranking(work)
    folder_ = work.checkpoints / f"step-{best:08d}"
    if how == "removed":
        shutil.rmtree(folder_)
    else:
        shard = folder_ / "rank-00001.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    [said] = on_ranks(1, export_and_listen, trained[0], work.root)

    step, why, _ = exported(work)
    assert step == second
    assert why.startswith(f"the best eval_loss, {cost:.4f}; better ones are gone: {folder_.name}")
    reason = "is no longer there" if how == "removed" else "rank-00001.safetensors: the SHA-256 is not the one"
    [line] = [line for line in said if line.startswith(f"skipped a better checkpoint: {folder_.name}")]
    assert reason in line


def test_a_run_without_evaluations_falls_back_to_its_last_step(trained: tuple[dict[str, Any], Path], work: WorkDir):
    _change_manifest(work, lambda manifest: manifest["state"].update(evaluations=[]))
    _export(trained[0], work)
    step, why, _ = exported(work)
    assert step == 6
    assert why == "the last step, because no checkpoint with an evaluation is intact"
