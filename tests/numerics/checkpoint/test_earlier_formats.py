"""A run that an earlier version began resumes under this version, with the numbers of the earlier version."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.make_runs import STEPS, curve, exported, machine

pytestmark = pytest.mark.numerics

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
RUNS = sorted(path.parent for path in FIXTURES.glob("format*/*/job.yaml"))


def name_of(run: Path) -> str:
    return f"{run.parent.name} {run.name}"


# On another processor or with another torch. Measured with the slowest kernels of this torch: 7e-7; a correlation, which divides
# by the spread of margins that hardly differ: 7e-6.
ROUNDING = 1e-6
ROUNDING_OF_CORRELATIONS = 1e-4
# A run that is resumed is exported and reported at its end, so CI has these commands by themselves for adapters only.
ADAPTERS = pytest.mark.parametrize(
    "run",
    [
        pytest.param(path, id=name_of(path), marks=[] if path.name == "lora" else [pytest.mark.exhaustive])
        for path in RUNS
    ],
    indirect=True,
)


@pytest.fixture(params=RUNS, ids=name_of)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """Folder of a fixture, and a copy of its work folder."""
    work = tmp_path / "work"
    shutil.copytree(request.param / "work", work)
    return request.param, work


def dpo(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """The command line, as a user types it."""
    command = [sys.executable, str(Path(sys.executable).with_name("dpo")), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)


def stopped_at(work: Path) -> int:
    return max(line["step"] for line in curve(work))


def test_fixtures_were_stopped_in_the_middle():
    assert {path.name for path in RUNS} == {"full", "lora"}
    for path in RUNS:
        assert 0 < stopped_at(path / "work") < STEPS
        assert not (path / "work" / "export").exists()


@ADAPTERS
def test_a_resumed_run_has_the_curve_of_one_without_a_stop(run: tuple[Path, Path]):
    fixture, work = run
    step, before = stopped_at(work), (work / "metrics.jsonl").read_text()
    done = dpo("run", fixture / "job.yaml", "--work-dir", work, "--claims", work, "--metrics-port", 0)
    assert done.returncode == 0, done.stderr[-4000:]

    # It resumed from the checkpoint: nothing was prepared or trained a second time.
    said = json.loads((work / "termination-train-2-0.json").read_text())
    assert (said["outcome"], said["progress"]["resumed_from_step"]) == ("Succeeded", step)
    assert (work / "prepared.json").read_bytes() == (fixture / "work" / "prepared.json").read_bytes()
    assert (work / "metrics.jsonl").read_text().startswith(before)

    expected = json.loads((fixture / "curve.json").read_text())
    # What later versions measure in addition is no difference, and answers are sampled while there is time.
    lines = [
        {key: value for key, value in then.items() if not key.startswith("eval_generation")}
        for then in expected["lines"]
    ]
    found = [{key: now[key] for key in then} for now, then in zip(curve(work), lines, strict=True)]
    # Since then adapters' matrices are whole on each rank, so that their gradients are summed in another order.
    if expected["machine"] == machine() and fixture.name == "full":
        assert found == lines
        assert exported(work) == expected["export"]
        return
    assert_close(found, lines)


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for now, then in zip(map(numbers, found), map(numbers, expected), strict=True):
        assert now.keys() == then.keys()
        for key, value in then.items():
            bar = ROUNDING_OF_CORRELATIONS if "correlation" in key else ROUNDING
            assert now[key] == pytest.approx(value, rel=bar, abs=bar), f"step {then['step']}: {key}"


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """Without what was not defined at a step, such as the correlation of equal lengths."""
    known = {key: value for key, value in line.items() if value is not None}
    return {key: float.fromhex(value) if isinstance(value, str) else value for key, value in known.items()}


def test_the_checkpoints_of_an_earlier_run_are_listed_and_whole(run: tuple[Path, Path]):
    _, work = run
    done = dpo("checkpoints", work, "--verify", "--json")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)["checkpoints"]
    assert {each["step"] for each in listed} == {int(p.name[5:]) for p in (work / "checkpoints").glob("step-*")}
    assert all(each["verified"] and not each["problem"] for each in listed), listed


@ADAPTERS
def test_an_earlier_checkpoint_is_exported(run: tuple[Path, Path]):
    _, work = run
    newest = max((work / "checkpoints").glob("step-*"))
    done = dpo("export", newest, "--to", work / "weights")
    assert done.returncode == 0, done.stderr[-4000:]
    assert list((work / "weights").glob("*.safetensors"))
    provenance = json.loads((work / "weights" / "dpo_provenance.json").read_text())
    assert provenance["checkpoint"]["step"] == stopped_at(work)


@ADAPTERS
def test_a_report_of_an_earlier_run_has_its_metrics(run: tuple[Path, Path]):
    _, work = run
    done = dpo("report", work)
    assert done.returncode == 0, done.stderr[-4000:]
    losses = [float.fromhex(line["loss"]) for line in curve(work) if "loss" in line]
    for loss in (losses[0], losses[-1]):
        assert f"{loss:.4f}" in done.stdout
    assert (work / "report" / "report.png").is_file()
