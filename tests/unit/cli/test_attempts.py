"""Restarts of the train phase in `dpo run`: the real launcher, with ranks that follow a script and load no torch."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dpo_operator.api import exitcodes, names
from dpo_operator.api.diagnosis import Finding
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.failurepolicy import FailurePolicy
from dpo_operator.api.reports import Termination
from dpo_operator.cli.attempts import Ending, PhaseAttempts, say_findings
from dpo_operator.cli.main import app

pytestmark = pytest.mark.unit

# `python -m` finds this package first, because the tests run in its folder.
TRAINER = """
import os, sys
from pathlib import Path

if sys.argv[1] == "launch":
    here = os.getcwd()
    sys.path = [folder for folder in sys.path if folder not in ("", here)]
    del sys.modules["dpo_trainer"]
    from dpo_trainer.launch.launcher import run

    work = Path(sys.argv[sys.argv.index("--work-dir") + 1])
    sys.exit(run(work / "job.json", work, [sys.executable, here + "/rank.py", here]))
"""

RANK = """
import json, os, sys, time
from pathlib import Path

here, work, attempt = Path(sys.argv[1]), Path(os.environ["DPO_WORK_DIR"]), int(os.environ["DPO_ATTEMPT"])
script = json.loads((here / "script.json").read_text())
part = script[min(attempt, len(script)) - 1]
failed = here / f"failed-{attempt}"
if os.environ["RANK"] != "0":
    while part["code"] and not failed.exists():
        time.sleep(0.02)
    sys.exit(75 if part["code"] else 0)
with (work / "metrics.jsonl").open("w") as file:
    file.writelines(json.dumps({"step": step, "loss": 0.7}) + "\\n" for step in range(1, part["steps"] + 1))
with (here / "attempts").open("a") as file:
    file.write(f"{attempt}\\n")
if part["commits"]:
    (work / "checkpoints" / "step-00000002").mkdir(parents=True)
failed.touch()
if part["code"] < 0:
    os.kill(os.getpid(), -part["code"])
if part["message"]:
    left = {"phase": "train", "attempt": attempt, "outcome": "Failed", "exit_code": part["code"], "message": part["message"]}
    Path(os.environ["DPO_TERMINATION_LOG"]).write_text(json.dumps(left))
sys.exit(part["code"])
"""


@dataclass
class Part:
    """What rank 0 does in one attempt. code: exit code, or the negative number of a signal that kills it."""

    code: int
    steps: int = 0
    message: str = ""
    commits: bool = False


@dataclass
class Done:
    """The end of `dpo run`. attempts: numbers of the attempts that began."""

    code: int
    stderr: str
    attempts: list[int]


class Folder:
    """A folder with a job and a scripted trainer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "dpo_trainer").mkdir()
        (path / "dpo_trainer" / "__init__.py").touch()
        (path / "dpo_trainer" / "__main__.py").write_text(TRAINER)
        (path / "rank.py").write_text(RANK)

    def run(self, *script: Part, nodes: int = 1, **policy: Any) -> Done:
        """`dpo run`; the last part of the script is that of all later attempts."""
        (self.path / "script.json").write_text(json.dumps([vars(part) for part in script]))
        spec = {
            "model": {"name": "./model"},
            "data": {"train": {"source": "./pairs.jsonl"}},
            "nodes": nodes,
            "gpusPerNode": 0,
            "failurePolicy": {"backoffSeconds": 1, "maxBackoffSeconds": 1, **policy},
        }
        document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "tiny"}, "spec": spec}
        (self.path / "job.yaml").write_text(yaml.safe_dump(document))
        done = CliRunner().invoke(app, ["run", "job.yaml", "--work-dir", "work"])
        attempts = self.path / "attempts"
        began = [int(line) for line in attempts.read_text().split()] if attempts.exists() else []
        return Done(done.exit_code, done.stderr, began)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path)


def test_a_killed_rank_restarts_all_ranks(folder: Folder):
    killed = -signal.SIGKILL
    done = folder.run(Part(killed, steps=3), Part(killed, steps=4, commits=True), Part(0), nodes=2)
    assert (done.code, done.attempts) == (0, [1, 2, 3]), done.stderr
    assert [line for line in done.stderr.splitlines() if "Killed" in line] == [
        "train ended with Killed (exit code 137)",
        "Killed: attempt 2 starts from the beginning; this counts against failurePolicy.maxRestarts",
        "train ended with Killed (exit code 137)",
        "Killed: attempt 3 resumes from the last committed checkpoint in 1 s; this counts against failurePolicy.maxRestarts",
    ]


def test_three_restarts_without_progress_end_the_run(folder: Folder):
    """An attempt that finishes more steps than all before it starts the count again."""
    done = folder.run(Part(ExitCode.INTERNAL_ERROR, steps=1), Part(ExitCode.INTERNAL_ERROR, steps=2))
    assert (done.code, done.attempts) == (ExitCode.INTERNAL_ERROR, [1, 2, 3, 4, 5])
    lines = done.stderr.splitlines()
    assert lines[-1] == "NoProgress: 3 restarts did not get beyond step 2, so another one would not help."
    # Not before the first restart.
    waits = [line.partition(";")[0].split(" in ")[1:] for line in lines if "starts from the beginning" in line]
    assert waits == [[], ["1 s"], ["1 s"], ["1 s"]]


@pytest.mark.parametrize("code", [ExitCode.BAD_DATASET, ExitCode.NO_ACCELERATOR])
def test_exit_codes_that_never_restart(folder: Folder, code: ExitCode):
    """A missing GPU restarts on a cluster, where a pod may find one on another node."""
    done = folder.run(Part(code, message="the trainer's own words"))
    assert (done.code, done.attempts) == (code, [1]), done.stderr
    assert done.stderr.splitlines()[-1] == f"train ended with {exitcodes.info(code).reason} (exit code {int(code)})"


@pytest.mark.parametrize("code", [*exitcodes.TABLE, 139])
def test_each_exit_code_restarts_as_its_class_says(code: int):
    decision = PhaseAttempts(FailurePolicy(), "train", 1).after_failure(Ending("train", 1, code, step=1))
    ends = exitcodes.info(code).failure_class == "configuration" or code == ExitCode.NO_ACCELERATOR
    assert decision.wait_seconds == (None if ends else 10 if code == ExitCode.SOURCE_UNAVAILABLE else 0)
    assert decision.reason == exitcodes.info(code).reason


def test_a_saved_stop_that_the_user_did_not_ask_for_is_not_counted():
    stopped = Termination(phase="train", attempt=1, outcome="Stopped", exit_code=143).to_text()
    attempts = PhaseAttempts(FailurePolicy(max_restarts=0), "train", 1)
    saved = attempts.after_failure(Ending("train", 1, 143, text=stopped, step=1))
    assert (saved.wait_seconds, saved.message) == (0, "this does not count against failurePolicy.maxRestarts")
    assert attempts.after_failure(Ending("train", 2, 143, step=2)).reason == "MaxRestartsExceeded"


def test_max_restarts_ends_a_run_that_makes_progress(folder: Folder):
    done = folder.run(Part(ExitCode.INTERNAL_ERROR, steps=1), Part(139, steps=2), maxRestarts=1)
    assert (done.code, done.attempts) == (139, [1, 2]), done.stderr
    assert done.stderr.splitlines()[-1] == (
        "MaxRestartsExceeded: There were 1 counted restarts within 3600 s, and failurePolicy.maxRestarts is 1."
    )


def test_rules_of_the_job_decide_first(folder: Folder):
    rules = [
        {"messageContains": "out of luck", "action": "Fail"},
        {"exitCodes": [int(ExitCode.BAD_DATASET)], "action": "RestartUncounted"},
    ]
    script = Part(ExitCode.BAD_DATASET), Part(ExitCode.INTERNAL_ERROR, message="out of luck")
    done = folder.run(*script, rules=rules, maxRestarts=0)
    assert (done.code, done.attempts) == (ExitCode.INTERNAL_ERROR, [1, 2]), done.stderr
    assert "BadDataset: attempt 2 starts from the beginning; this does not count against" in done.stderr
    assert done.stderr.splitlines()[-1] == "InternalError: failurePolicy.rules[0] says Fail."


@pytest.mark.parametrize("left", ["", "{", '{"loss": 1}\n', "[]\n\xff\n"])
def test_metrics_that_cannot_be_read_count_as_no_step(tmp_path: Path, left: str):
    (tmp_path / "metrics.jsonl").write_bytes(left.encode("latin-1"))
    (tmp_path / "termination-train-1-0.json").write_bytes(b"\xff" + os.urandom(8))
    assert Ending.read(tmp_path, "train", 1, 137) == Ending("train", 1, 137)


@pytest.mark.parametrize("text", ["", "[]", '{"findings": [{"code": "x"}]}', '{"findings": 3}'])
def test_no_finding_is_said_of_a_file_of_another_kind(tmp_path: Path, text: str):
    said: list[str] = []
    say_findings(tmp_path, said.append)
    (tmp_path / "diagnosis.json").write_text(text)
    say_findings(tmp_path, said.append)
    assert said == []


def test_findings_are_said_in_their_sentence(tmp_path: Path):
    said: list[str] = []
    finding = Finding(code="FlatLoss", severity="Unhealthy", step=8, cause="Flat.", suggestion="Try more.")
    (tmp_path / "diagnosis.json").write_text(json.dumps({"findings": [finding.model_dump(mode="json")]}))
    say_findings(tmp_path, said.append)
    assert said == ["Unhealthy: FlatLoss: Flat. Try more."]
