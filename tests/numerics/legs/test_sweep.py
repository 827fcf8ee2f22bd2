"""Sweeps on a real small model, through `dpo run` and through the phases."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import Termination
from dpo_trainer.checkpoint import layout
from dpo_trainer.legs import record
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import Line, read_metrics
from tests import tied
from tests.numerics.phases import KIND, SAD, Job
from tests.ports import free_port

pytestmark = pytest.mark.numerics

DPO = [sys.executable, "-c", "from dpo_operator.cli.main import app; app()"]
CLOCK = ("time", "step_seconds", "pairs_per_second", "tokens_per_second")


def a_job(shared: Path, root: Path, sweep: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A sweep on stories260K: 32 pairs of kind and sad words."""
    rows = [
        {"prompt": f"Tom and {KIND[i % 12]} Sue", "chosen": f" {KIND[i % 13]}.", "rejected": f" {SAD[i % 10]}."}
        for i in range(40)
    ]
    for name, some in (("train", rows[:32]), ("eval", rows[32:])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    spec: dict[str, Any] = {
        "model": {"name": str(shared / "models" / "stories260K")},
        "data": {"train": {"source": str(root / "train.jsonl")}, "eval": {"source": str(root / "eval.jsonl")}, "maxLength": 64},
        "sweep": sweep,
        "training": {
            "globalBatchSize": 8, "precision": "fp32", "device": "cpu", "warmupRatio": 0.0, "gradientCheckpointing": False, "maxSteps": 4,
            "logEverySteps": 1,
        },
        "evaluation": {"everySteps": 2, "samples": 0},
        "checkpoint": {"everySteps": 1, "keepLast": 1},
        "gpusPerNode": 0,
        **parts,
    }  # fmt: skip
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "sweep"}, "spec": spec}


class Legs(Job):
    """Phases of a sweep's legs."""

    def _variables(self, round_number: int) -> dict[str, str]:
        return super()._variables(0) | {names.ENV_LEG: str(round_number)}


def reference_files(work: Path) -> dict[str, tuple[int, int]]:
    """The cached reference log-probs; a file that is written anew is another one."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (work / "reference").iterdir()}


def steps(work: Path, leg: int) -> list[Line]:
    lines = read_metrics(WorkDir(work).of_sweep(leg).metrics)
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def test_an_unhealthy_leg_ends_and_the_other_one_is_exported(shared: Path, tmp_path: Path) -> None:
    """The first leg's steps are far too large; its figures are kept, the pods end well, and both legs use one reference pass."""
    lora = {"type": "lora", "rank": 4, "targetModules": ["q_proj", "v_proj"]}
    grid = {"learningRate": [0.5, 1e-3]}
    job = Legs(
        tmp_path / "job",
        a_job(shared, tmp_path, grid, adapter=lora, evaluation={"everySteps": 2, "samples": 16, "sampleTokens": 16}),
    )
    job.run("prepare")
    ill = job.run("train", 1)
    first = reference_files(job.work)
    assert len(first) == 2  # of the training pairs, and of the evaluation's
    assert ill.leg is not None
    assert (ill.leg.outcome, ill.leg.settings, ill.leg.unhealthy) == ("Unhealthy", "learningRate 0.5", True)
    assert ill.leg.findings
    assert ill.leg.steps < 4
    # Another attempt at a leg that has ended says the same again, and trains nothing.
    before = (job.work / "legs/0001/metrics.jsonl").read_bytes()
    assert job.run("train", 1).leg == ill.leg
    assert (job.work / "legs/0001/metrics.jsonl").read_bytes() == before
    well = job.run("train", 2)
    assert well.leg is not None
    assert (well.leg.outcome, well.leg.steps, well.leg.step) == ("Trained", 4, 4)
    assert well.leg.kl is not None
    assert well.progress is not None
    assert well.progress.checkpoint is not None
    assert well.progress.checkpoint.path.startswith("legs/0002/checkpoints/")
    assert reference_files(job.work) == first

    assert job.ended("export").exit_code == ExitCode.INVALID_CONFIGURATION
    assert job.run("export", 2).export_path == "export"
    provenance = json.loads((job.work / "export" / "dpo_provenance.json").read_text())
    assert provenance["spec"]["training"]["learningRate"] == 1e-3
    assert "sweep" not in provenance["spec"]
    assert record.chosen(WorkDir(job.work)) == 2
    # The checkpoint of the other leg is there still, for an export by hand.
    (checkpoint,) = (job.work / "legs" / "0001" / "checkpoints").glob("step-????????")
    by_hand = [
        "export-checkpoint",
        "--job-file",
        str(job.file),
        "--to",
        str(tmp_path / "by-hand"),
        "--",
        str(checkpoint),
    ]
    tied.run([sys.executable, "-m", "dpo_trainer", *by_hand], check=True)
    provenance = json.loads((tmp_path / "by-hand" / "dpo_provenance.json").read_text())
    assert provenance["spec"]["training"]["learningRate"] == 0.5
    report = (job.work / "report" / "report.txt").read_text()
    assert "learningRate 0.5" in report
    assert "Unhealthy" in report


@pytest.mark.exhaustive
def test_a_sweep_is_killed_in_its_third_leg_and_goes_on_there(shared: Path, tmp_path: Path) -> None:
    """3 values of beta, 2 rates, `dpo run`: one reference pass, the third leg as without a kill, and the best leg exported."""
    grid = {"beta": [0.05, 0.1, 0.5], "learningRate": [1e-3, 1e-4]}
    document = a_job(shared, tmp_path, grid)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
    work = tmp_path / "work"
    third = WorkDir(work).of_sweep(3)

    def run() -> Any:
        command = [*DPO, "run", str(tmp_path / "job.yaml"), "--work-dir", str(work), "--metrics-port", str(free_port())]
        out = (tmp_path / "log").open("ab")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return tied.popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)

    killed = run()
    while not layout.committed(third.checkpoints):
        assert killed.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    _end_of(work)
    assert not third.leg_report.exists()
    kept = {leg: (work / f"legs/000{leg}/metrics.jsonl").read_bytes() for leg in (1, 2)}
    reference = reference_files(work)
    assert len(reference) == 2

    assert run().wait() == 0, (tmp_path / "log").read_text()
    assert reference_files(work) == reference
    assert {leg: (work / f"legs/000{leg}/metrics.jsonl").read_bytes() for leg in (1, 2)} == kept
    reports = record.read_reports(WorkDir(work))
    assert [(report.leg, report.outcome, report.steps) for report in reports] == [
        (leg, "Trained", 4) for leg in range(1, 7)
    ]

    # The same leg without a kill.
    alone = Legs(tmp_path / "alone", document)
    alone.run("prepare")
    alone.run("train", 3)
    _assert_alike(steps(work, 3), steps(alone.work, 3))

    best = min(reports, key=lambda report: (-(report.accuracy or 0), report.drift or 0))
    assert record.chosen(WorkDir(work)) == best.leg
    provenance = json.loads((work / "export" / "dpo_provenance.json").read_text())
    assert provenance["checkpoint"]["path"].startswith(f"legs/000{best.leg}/")
    ended = Termination.from_text((work / "termination-export-1-0.json").read_text())
    assert ended is not None
    assert ended.export_path == "export"


def _assert_alike(found: list[Line], wanted: list[Line]) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for one, other in zip(found, wanted, strict=True):
        for key in ("loss", "eval_loss"):  # the figures before the first step have neither
            assert one.get(key) == pytest.approx(other.get(key), abs=1e-6)


def _end_of(work: Path) -> None:
    """Wait for the processes of a run that was killed: they end with their parent."""
    mine = f"{names.ENV_WORK_DIR}={work}".encode()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        left = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mine in (folder / "environ").read_bytes().split(b"\0"):
                    left.append(int(folder.name))
            except OSError:
                continue
        if not left:
            return
        for number in left:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    raise AssertionError("processes of the killed run are left")
