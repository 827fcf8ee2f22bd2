"""Sweeps in `dpo run`: legs in their order, where a run resumes, and which leg is exported; the phases themselves follow a script."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.cli.main import app

pytestmark = pytest.mark.unit

# `python -m` finds this package first, because the tests run in its folder.
TRAINER = """
import json, os, sys
from pathlib import Path

words, work = sys.argv[1:], Path(os.environ["DPO_WORK_DIR"])
phase = "train" if words[0] == "launch" else words[0]
number, attempt = int(os.environ["DPO_LEG"]), int(os.environ["DPO_ATTEMPT"])
with Path("log").open("a") as log:
    log.write(f"{phase} {number} {attempt}\\n")
code = json.loads(Path("codes.json").read_text()).get(f"{phase} {number} {attempt}", 0)
said = {"phase": phase, "attempt": attempt, "outcome": "Failed" if code else "Succeeded", "exit_code": code}
if phase == "export":
    said["export_path"] = "export"
    (work / "legs" / "chosen.json").write_text(json.dumps({"leg": number}))
(work / f"termination-{phase}-{attempt}-0.json").write_text(json.dumps(said))
leg = work / f"legs/{number:04d}"
if phase == "train" and not code:
    leg.mkdir(parents=True, exist_ok=True)
    found = json.loads(Path("legs.json").read_text())[number - 1]
    (leg / "leg.json").write_text(json.dumps({"leg": number, "settings": f"no. {number}", "outcome": "Trained"} | found))
sys.exit(code)
"""
HEALTHY = [{"accuracy": 0.6}, {"accuracy": 0.9}, {"accuracy": 0.7}]
TRAINED = ["train 1", "train 2", "train 3"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "dpo_trainer"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(TRAINER)
    (tmp_path / "codes.json").write_text("{}")
    (tmp_path / "legs.json").write_text(json.dumps(HEALTHY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(here: Path, **fields: Any) -> Result:
    spec: dict[str, Any] = {
        "model": {"name": "./model"}, "data": {"train": {"source": "./pairs.jsonl"}, "evalFraction": 0.1}, "gpusPerNode": 0,
        "failurePolicy": {"backoffSeconds": 1}, "sweep": {"beta": [0.03, 0.1, 0.3]} | fields,
    }  # fmt: skip
    document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "sweep"}, "spec": spec}
    (here / "job.yaml").write_text(yaml.safe_dump(document))
    return CliRunner().invoke(app, ["run", str(here / "job.yaml"), "--work-dir", str(here / "work")])


def ran(here: Path, *, attempts: bool = False) -> list[str]:
    """Phases and legs in their order, with attempts if asked for; forgets them."""
    lines = (here / "log").read_text().splitlines()
    (here / "log").unlink()
    return [line if attempts else line.rpartition(" ")[0] for line in lines if not line.startswith("report")]


def test_a_run_trains_its_legs_and_exports_the_best(here: Path) -> None:
    done = run(here)
    assert done.exit_code == 0, done.output
    assert ran(here) == ["prepare 0", *TRAINED, "export 2"]
    assert "train of leg 2:" in done.stderr
    assert "leg 2 is exported, the best by eval_reward_accuracy: no. 2" in done.stderr
    assert "leg 2 (no. 2): 0 steps, accuracy 0.9, exported" in done.stderr


def test_a_run_that_was_stopped_goes_on_in_its_leg(here: Path) -> None:
    (here / "codes.json").write_text(json.dumps({"train 3 3": int(ExitCode.BAD_EXPORT)}))
    assert run(here).exit_code == ExitCode.BAD_EXPORT
    assert ran(here)[-1] == "train 3"
    (here / "codes.json").write_text("{}")
    assert run(here).exit_code == 0
    assert ran(here, attempts=True) == ["prepare 0 1", "train 3 4", "export 2 1"]


def test_a_leg_that_is_killed_starts_again(here: Path) -> None:
    (here / "codes.json").write_text(json.dumps({"train 2 2": 137}))
    assert run(here).exit_code == 0
    assert ran(here, attempts=True)[1:5] == ["train 1 1", "train 2 2", "train 2 3", "train 3 4"]


def test_unhealthy_legs_are_not_exported(here: Path) -> None:
    (here / "legs.json").write_text(json.dumps([{"accuracy": 1.0, "outcome": "Unhealthy"}, *HEALTHY[1:]]))
    assert run(here).exit_code == 0
    assert ran(here)[-1] == "export 2"


def test_without_a_healthy_leg_nothing_is_exported(here: Path) -> None:
    ill = {"outcome": "Unhealthy", "findings": ["Gibberish"], "steps": 7}
    (here / "legs.json").write_text(json.dumps([ill] * 3))
    done = run(here)
    assert done.exit_code == ExitCode.STOPPED_BY_DIAGNOSIS
    assert ran(here) == ["prepare 0", *TRAINED]
    assert "all 3 were unhealthy: leg 1 (no. 1): Gibberish at step 7" in done.stderr


def test_another_grid_is_another_run(here: Path) -> None:
    assert run(here).exit_code == 0
    other = run(here, beta=[0.03, 0.1])
    assert other.exit_code == ExitCode.INVALID_CONFIGURATION
    assert "spec.sweep" in other.stderr


def test_why_tells_of_the_legs(here: Path) -> None:
    assert run(here).exit_code == 0
    for file in (here / "work").glob("termination-train-*"):  # the script is faster than the clock
        os.utime(file, (1, 1))
    said = CliRunner().invoke(app, ["why", str(here / "work")]).output
    assert "complete" in said
    assert "Leg 2 (no. 2): 0 steps, accuracy 0.9, exported." in said


def test_why_names_the_leg_that_failed(here: Path) -> None:
    (here / "codes.json").write_text(json.dumps({"train 3 3": int(ExitCode.BAD_EXPORT)}))
    run(here)
    said = CliRunner().invoke(app, ["why", str(here / "work")]).output
    assert "leg 3" in said
