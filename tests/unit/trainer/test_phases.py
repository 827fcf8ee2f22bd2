"""The command line: exit code and termination message of each phase."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_operator.api.reports import Termination
from tests.numerics.jobs import a_job
from tests.unit.trainer.place import Place

pytestmark = pytest.mark.unit


def trainer(folder: Path, command: str, job: object, **environment: str) -> tuple[int, str, Termination | None]:
    """Run a phase as a container would; returns exit code, standard error and termination message."""
    path, termination = folder / "job.json", folder / "termination.json"
    path.write_text(job if isinstance(job, str) else json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-m", "dpo_trainer", command],
        env={
            **os.environ, "DPO_JOB_FILE": str(path), "DPO_WORK_DIR": str(folder / "work"), "DPO_METRICS_PORT": "0",
            "DPO_TERMINATION_LOG": str(termination), **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    left = Termination.from_text(termination.read_text()) if termination.exists() else None
    return done.returncode, done.stderr, left


def changed(**spec: object) -> dict:
    job = a_job()
    job["spec"].update(spec)
    return job


@pytest.mark.parametrize(
    ("job", "code", "message"),
    [
        ("not json", 78, "expected a DPOJob as JSON"),
        (changed(nodes=0), 78, "spec.nodes: Input should be greater than or equal to 1 (found 0)"),
        (changed(surprise=1), 78, "spec.surprise: Extra inputs are not permitted"),
        (
            changed(training={"offload": "nvme"}),
            64,
            "spec.training.offload: nvme is not implemented yet",
        ),
    ],
)
@pytest.mark.parametrize("command", ["prepare", "train", "export"])
def test_a_wrong_job_file(tmp_path: Path, command: str, job: object, code: int, message: str):
    found, stderr, termination = trainer(tmp_path, command, job)

    assert (found, termination.exit_code, termination.outcome, termination.phase) == (code, code, "Failed", command)
    assert message in termination.message
    assert message in stderr
    assert "Traceback" not in stderr


BROKEN_RULE = "spec.training.globalBatchSize: must be at least"


def test_a_job_that_breaks_a_rule_is_refused_before_it_begins(tmp_path: Path):
    found, _, termination = trainer(tmp_path, "prepare", changed(nodes=99))

    assert (found, termination.exit_code) == (78, 78)
    assert BROKEN_RULE in termination.message


def test_a_running_job_continues_despite_newer_rules(tmp_path: Path):
    found, stderr, termination = trainer(tmp_path, "export", changed(nodes=99))

    assert f"newer rules would refuse this job: {BROKEN_RULE}" in stderr
    # It ends for another reason: there's nothing to export yet.
    assert (found, BROKEN_RULE in termination.message) == (66, False)


def test_a_missing_job_file_is_named(tmp_path: Path):
    found, _, termination = trainer(tmp_path, "prepare", a_job(), DPO_JOB_FILE=str(tmp_path / "none.json"))

    assert found == 66
    assert "none.json: the job file can't be read" in termination.message


def test_another_job_file_than_the_operators_is_refused(tmp_path: Path):
    job = json.dumps(a_job())
    digest = hashlib.sha256(job.encode()).hexdigest()
    _, _, expected = trainer(tmp_path, "export", job, DPO_JOB_FILE_SHA256=digest)
    assert "SHA-256" not in expected.message

    found, _, termination = trainer(tmp_path, "prepare", job + " ", DPO_JOB_FILE_SHA256=digest)

    assert (found, termination.exit_code) == (78, 78)
    assert "Somebody put another ConfigMap in its place" in termination.message


def test_what_prepare_warns_of_is_in_its_last_words(tmp_path: Path):
    place = Place(tmp_path / "place")
    job = place.job().model_dump_json(by_alias=True, exclude_defaults=True)
    found, stderr, termination = trainer(tmp_path, "prepare", job)

    assert (found, termination.progress.diagnosed_step) == (0, 0)
    findings = termination.progress.findings
    assert "FewTrainingPairs" in [finding.code for finding in findings]
    assert [finding for finding in findings if f"Warning: Dataset: {finding.sentence}" not in stderr] == []


def test_an_attempt_that_is_not_a_number(tmp_path: Path):
    found, _, termination = trainer(tmp_path, "train", a_job(), DPO_ATTEMPT="one")

    assert (found, termination.message) == (78, "DPO_ATTEMPT: expected a number from 1, found 'one'")


def test_export_without_a_checkpoint(tmp_path: Path):
    found, _, termination = trainer(tmp_path, "export", a_job())

    assert (found, termination.reason) == (66, "InputNotFound")
    assert "expected a committed checkpoint, found none; train first" in termination.message


def test_usage_is_shown_for_a_wrong_command():
    done = subprocess.run([sys.executable, "-m", "dpo_trainer", "fly"], capture_output=True, text=True)

    assert done.returncode == 2
    assert "{prepare,launch,generate,judge,train,export,mirror,report,preview,look}" in done.stderr
