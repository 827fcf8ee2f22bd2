"""A training begins with another job's checkpoint, from its volume and from its mirror, and continues as that job did."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import CheckpointRecord, RecordedCheckpoints, Termination
from dpo_trainer.checkpoint.manifest import read_manifest
from tests.contract.stores.conftest import Phases
from tests.contract.stores.runs import a_job, dpo_run, losses
from tests.s3 import Server

pytestmark = pytest.mark.contract


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder, with the time of its last change."""
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@dataclass
class Run:
    """A job that was trained to its end, with a mirror."""

    file: Path
    phases: Phases

    def spec(self, **changes: Any) -> dict[str, Any]:
        """Its spec without the mirror."""
        spec = json.loads(self.file.read_text())["spec"]
        del spec["checkpoint"]["mirror"]
        return spec | changes

    def digest(self, step: int) -> str:
        return read_manifest(self.phases.work / "checkpoints" / f"step-{step:08d}")[1]


@pytest.fixture(scope="module")
def first(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Run:
    server.bucket("first")
    root = tmp_path_factory.mktemp("first")
    run = Run(a_job(server, root, "first"), Phases(root))
    dpo_run(run.file, run.phases)
    return run


def test_a_training_goes_on_from_another_jobs_claim(first: Run, phases: Phases, tmp_path: Path) -> None:
    claim = tmp_path / "claims" / "other-work"
    shutil.copytree(first.phases.work, claim / "uid-1")
    there = content(claim)
    spec = first.spec(resumeFrom={"source": "pvc://other-work", "step": 3, "digest": first.digest(3)})
    spec["training"] = spec["training"] | {"maxSteps": 5, "scheduler": "constant"}
    assert phases.run("prepare", spec, DPO_CLAIMS_DIR=str(claim.parent)) == ExitCode.INVALID_CONFIGURATION
    message = phases.termination("prepare")["message"]
    for words in ("spec.training.scheduler", "'constant'", "Set these as the other job has them", "model.name"):
        assert words in message
    assert not list(phases.work.glob("checkpoints/step-*"))

    # The run may be longer, and the manifest is recorded as the job's own.
    del spec["training"]["scheduler"]
    assert phases.run("prepare", spec, DPO_CLAIMS_DIR=str(claim.parent)) == 0, phases.output
    resumed = Termination.model_validate(phases.termination("prepare")).resumed
    assert resumed is not None
    ref = resumed.checkpoint
    assert (resumed.source, ref.step, ref.attempt) == ("pvc://other-work/uid-1/checkpoints", 3, 1)
    record = CheckpointRecord(step=ref.step, attempt=ref.attempt, digest=ref.digest)
    known = RecordedCheckpoints(last_attempt=0, checkpoints=(record,)).model_dump_json()
    assert phases.run("launch", spec, DPO_RECORDED_CHECKPOINTS=known) == 0, phases.output
    after, before = losses(phases), losses(first.phases)
    # What step 3 has trained decides the loss of step 4; the learning rate of a longer run is another one from then on.
    assert {step: after[step] for step in before} == before
    assert sorted(after) == [1, 2, 3, 4, 5]
    trained = Termination.model_validate(phases.termination("train")).progress
    assert trained is not None
    assert trained.resumed_from_step == 3
    assert content(claim) == there


@pytest.mark.exhaustive
def test_a_training_goes_on_from_another_runs_mirror(first: Run, phases: Phases) -> None:
    there = content(first.phases.work)
    # The settings that decide no number may differ.
    spec = first.spec(resumeFrom={"source": "s3://first/mirrored", "step": 2}) | {"checkpoint": {"everySteps": 3}}
    file = phases.root / "dpojob.yaml"
    file.write_text(json.dumps(json.loads(first.file.read_text()) | {"metadata": {"name": "again"}, "spec": spec}))
    dpo_run(file, phases)
    assert losses(phases) == losses(first.phases)
    model = "export/model.safetensors"
    assert (phases.work / model).read_bytes() == (first.phases.work / model).read_bytes()
    report, card = (phases.work / path for path in ("report/report.txt", "export/README.md"))
    assert f"began with: step 2 of s3://first/mirrored, SHA-256 {first.digest(2)}" in report.read_text()
    assert f"| began with | step 2 of `s3://first/mirrored`, checkpoint `{first.digest(2)}` |" in card.read_text()
    assert content(first.phases.work) == there
    assert phases.leaks() == []
