"""Rounds in `dpo run`: which phases run, in which order, and where a run goes on; the phases themselves follow a script."""

import json
import sys
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
phase = words[0] if words[0] != "launch" else words[2] if words[1] == "--phase" else "train"
number, attempt = int(os.environ["DPO_ROUND"]), int(os.environ["DPO_ATTEMPT"])
with Path("log").open("a") as log:
    log.write(f"{phase} {number} {attempt}\\n")
codes = json.loads(Path("codes.json").read_text())
code = codes.get(f"{phase} {number} {attempt}", 0)
said = {"phase": phase, "attempt": attempt, "outcome": "Failed" if code else "Succeeded", "exit_code": code}
rank = os.environ["PET_NODE_RANK"]
(work / f"termination-{phase}-{attempt}-{rank}.json").write_text(json.dumps(said))
leg = work / f"rounds/{number:04d}"
if phase == "judge" and not code:
    leg.mkdir(parents=True, exist_ok=True)
    ended = json.loads(Path("ends.json").read_text()).get(str(number), "")
    (leg / "round.json").write_text(json.dumps({"round": number, "pairs": 7, "prompts": 9, "ended": ended}))
if phase == "export" and number and not code:
    (leg / "export").mkdir(parents=True)
    (leg / "export" / "dpo_provenance.json").write_text("{}")
sys.exit(code)
"""
PLAN = {"rounds": 2, "judge": {"type": "builtin", "builtin": {"name": "length", "tokens": 5}}}
ROUND_1 = ["generate 1", "judge 1", "train 1", "export 1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "dpo_trainer"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(TRAINER)
    (tmp_path / "codes.json").write_text("{}")
    (tmp_path / "ends.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(here: Path, **fields: Any) -> Result:
    spec: dict[str, Any] = {
        "model": {"name": "./model"}, "data": {"train": {"source": "./pairs.jsonl"}}, "gpusPerNode": 0,
        "failurePolicy": {"backoffSeconds": 1}, "iterative": PLAN | fields,
    }  # fmt: skip
    document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "rounds"}, "spec": spec}
    (here / "job.yaml").write_text(yaml.safe_dump(document))
    return CliRunner().invoke(app, ["run", str(here / "job.yaml"), "--work-dir", str(here / "work")])


def ran(here: Path, *, attempts: bool = False) -> list[str]:
    """Phases and rounds in their order, with attempts if asked for; forgets them."""
    lines = (here / "log").read_text().splitlines()
    (here / "log").unlink()
    return [line if attempts else line.rpartition(" ")[0] for line in lines if not line.startswith("report")]


def test_a_run_goes_through_its_rounds(here: Path) -> None:
    done = run(here)
    assert done.exit_code == 0, done.output
    round_2 = [step.replace("1", "2") for step in ROUND_1]
    assert ran(here) == ["prepare 0", *ROUND_1, *round_2, "generate 3", "judge 3", "export 0"]
    assert "train of round 2:" in done.stderr
    assert done.stderr.splitlines()[-3:-1] == [f"round {number}: 7 pairs of 9 prompts" for number in (1, 2)]


def test_a_run_that_was_killed_goes_on_in_its_round(here: Path) -> None:
    (here / "codes.json").write_text(json.dumps({"export 2 2": int(ExitCode.VOLUME_ERROR)}))
    assert run(here).exit_code == ExitCode.VOLUME_ERROR
    assert ran(here)[-1] == "export 2"
    (here / "codes.json").write_text("{}")
    assert run(here).exit_code == 0
    # Attempts go on rising over rounds and runs; what a phase has done it does not do again itself.
    round_2 = ["generate 2 3", "judge 2 3", "train 2 3", "export 2 3"]
    assert ran(here, attempts=True) == ["prepare 0 1", *round_2, "generate 3 4", "judge 3 4", "export 0 1"]


def test_generators_and_judges_start_again_as_ranks_do(here: Path) -> None:
    killed = {"generate 1 1": 137, "judge 1 1": 137, "judge 1 2": int(ExitCode.SOURCE_UNAVAILABLE)}
    (here / "codes.json").write_text(json.dumps(killed))
    done = run(here, rounds=1, evaluateLast=False)
    assert done.exit_code == 0, done.output
    began = ran(here, attempts=True)
    assert began[1:6] == ["generate 1 1", "generate 1 2", "judge 1 1", "judge 1 2", "judge 1 3"]
    assert "attempt 2 goes on after what is done" in done.stderr


VLLM = {"rounds": 1, "evaluateLast": False, "generation": {"engine": "vllm"}}


def test_vllm_generates_with_the_python_that_has_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "vllm.py").write_text("")
    python = here / "python"
    python.write_text(f'#!/bin/sh\necho "$3" >> {here}/asked\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv(names.ENV_GENERATE_PYTHON, str(python))
    done = run(here, **VLLM)
    assert done.exit_code == 0, done.output
    assert ran(here) == ["prepare 0", *ROUND_1, "export 0"]
    # Looked at before the run and before the phase; of the phases it runs this one.
    assert [line for line in (here / "asked").read_text().splitlines() if line] == ["launch"]


def test_a_run_without_vllm_says_how_to_give_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(names.ENV_GENERATE_PYTHON, raising=False)
    done = run(here, **VLLM)
    assert done.exit_code == ExitCode.INVALID_CONFIGURATION
    assert f"needs vllm, which {sys.executable} does not find. Set DPO_GENERATE_PYTHON" in done.stderr
    for wrong in ("/no/such/python", "/bin/false"):
        monkeypatch.setenv(names.ENV_GENERATE_PYTHON, wrong)
        assert f"DPO_GENERATE_PYTHON: {wrong} is no Python that works" in run(here, **VLLM).stderr
    assert not (here / "log").exists()


def test_a_wrong_judge_ends_the_run_at_once(here: Path) -> None:
    (here / "codes.json").write_text(json.dumps({"judge 1 1": int(ExitCode.ACCESS_DENIED)}))
    assert run(here).exit_code == ExitCode.ACCESS_DENIED
    assert ran(here) == ["prepare 0", "generate 1", "judge 1"]


@pytest.mark.parametrize(
    ("end", "last"),
    [("Saturated", ["judge 2", "export 0"]), ("BudgetSpent", ["judge 2", "train 2", "export 2", "export 0"])],
)
def test_a_judge_ends_the_rounds(here: Path, end: str, last: list[str]) -> None:
    (here / "ends.json").write_text(json.dumps({"2": end}))
    assert run(here, rounds=4).exit_code == 0
    assert ran(here)[-len(last) :] == last


def test_more_rounds_may_be_asked_for(here: Path) -> None:
    assert run(here, rounds=1).exit_code == 0
    ran(here)
    assert run(here, rounds=2).exit_code == 0
    round_2 = ["generate 2", "judge 2", "train 2", "export 2"]
    assert ran(here) == ["prepare 0", *round_2, "generate 3", "judge 3", "export 0"]
    fewer = run(here, rounds=1)
    assert fewer.exit_code == ExitCode.INVALID_CONFIGURATION
    assert "spec.iterative.rounds" in fewer.stderr
