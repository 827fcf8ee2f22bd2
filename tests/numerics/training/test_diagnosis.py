"""Diagnosis in whole runs on two ranks: what it states, what it ends, and that a restart continues it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.types import DPOJob
from dpo_trainer.checkpoint import layout
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.stop import StopRequest
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.telemetry.metrics_file import read_metrics
from tests.numerics.jobs import a_job, make_model, some_pairs
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics


def a_flat_job(**diagnosis: Any) -> dict[str, Any]:
    """A rate at which nothing is learned, and an evaluation every two steps; checkpoints are far."""
    document = a_job(maxSteps=10, learningRate=1e-9, warmupRatio=0.0)
    document["spec"] |= {"evaluation": {"everySteps": 2, "samples": 0}, "diagnosis": diagnosis}
    return document


def train_rank(document: dict[str, Any], root: Path, attempt: int = 1, broken: bool = False) -> dict[str, Any]:
    """Be one rank; how the run ended. broken: the rules can't look."""
    from dpo_trainer.training import diagnosing, train

    if broken:
        diagnosing.diagnose = lambda *_: 1 / 0  # type: ignore[assignment]
    rank, work = int(os.environ["RANK"]), WorkDir(root)
    telemetry = Telemetry("train", attempt, work, rank=rank, local_rank=rank, world_size=2)
    code = 0
    try:
        train.run(DPOJob.model_validate(document), work, telemetry=telemetry, attempt=attempt, stop=StopRequest())
    except TrainerError as error:
        code = int(error.exit_code)
        text = str(error)
    else:
        text = ""
    telemetry.close()
    found = [(finding.code, finding.severity) for finding in telemetry.progress.findings]
    return {"code": code, "text": text, "step": telemetry.progress.step, "findings": found}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = WorkDir(tmp_path_factory.mktemp("prepared"))
    some_pairs(40, seed=0).save(work.train_data)
    some_pairs(8, seed=1).save(work.eval_data)
    on_ranks(1, make_model, work.model)
    return work.root


def flat(root: Path) -> dict[str, Any]:
    found = json.loads((root / "diagnosis.json").read_text())
    return next(finding for finding in found["findings"] if finding["code"] == "FlatLoss")


def test_a_finding_ends_the_run_on_all_ranks_after_a_save(prepared: Path, tmp_path: Path):
    root = tmp_path / "run"
    shutil.copytree(prepared, root)
    first, second = on_ranks(2, train_rank, a_flat_job(stopOn=["FlatLoss"]), root)
    assert (first["code"], second["code"]) == (ExitCode.STOPPED_BY_DIAGNOSIS, ExitCode.STOPPED_BY_DIAGNOSIS)
    stated = flat(root)
    assert first["text"] == second["text"] == stated["sentence"]
    assert ("FlatLoss", "Unhealthy") in map(tuple, first["findings"])
    assert second["findings"] == []
    stopped = first["step"]
    assert stopped == stated["step"] < 10
    assert layout.committed(root / "checkpoints")[0][0] == stopped

    # Another start is ended by the same finding, before any step.
    again, _ = on_ranks(2, train_rank, a_flat_job(stopOn=["FlatLoss"]), root, 2)
    assert (again["code"], again["step"], again["text"]) == (first["code"], stopped, first["text"])

    # Without stopOn the run continues, and the finding keeps its first step.
    whole, _ = on_ranks(2, train_rank, a_flat_job(), root, 3)
    assert (whole["code"], whole["step"], flat(root)["step"]) == (0, 10, stopped)
    assert [line["step"] for line in read_metrics(root / "metrics.jsonl") if "loss" in line] == list(range(1, 11))


def test_rules_that_fail_end_no_run(prepared: Path, tmp_path: Path):
    root = tmp_path / "run"
    shutil.copytree(prepared, root)
    first, _ = on_ranks(2, train_rank, a_flat_job(stopOn=["FlatLoss"]), root, 1, True)
    assert (first["code"], first["step"]) == (0, 10)
    assert [tuple(finding) for finding in first["findings"]] == [("NoDiagnosis", "Info")]


def test_no_rule_looks_when_it_is_not_wanted(prepared: Path, tmp_path: Path):
    root = tmp_path / "run"
    shutil.copytree(prepared, root)
    first, _ = on_ranks(2, train_rank, a_flat_job(enabled=False, stopOn=["FlatLoss"]), root)
    assert (first["code"], first["findings"], (root / "diagnosis.json").exists()) == (0, [], False)
