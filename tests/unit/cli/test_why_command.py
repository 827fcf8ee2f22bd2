"""`dpo why` on a folder, and `kubectl dpo why` with what a cluster answers."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dpo_operator.api import names
from dpo_operator.api.diagnosis import Code, Finding
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import Progress, RoundReport, Termination
from dpo_operator.cli.localfolder import locked
from dpo_operator.cli.main import app
from dpo_operator.planning.objects import ChildPod
from tests.unit.cli.fakekubectl import FakeKubectl
from tests.unit.explain.cases import a_finding, raw_pod, unscheduled
from tests.unit.planning.build import UID, a_child, a_job, a_status, a_view, decide

pytestmark = pytest.mark.unit


def said(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["why", *arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that was prepared and has trained 4 steps."""
    run = tmp_path / "runs" / "pairs"
    (run / "checkpoints" / "step-00000004").mkdir(parents=True)
    (run / "checkpoints" / "step-00000004" / "manifest.json").write_text("{}")
    (run / "checkpoints" / "attempt").write_text("1\n")
    (run / "prepared.json").write_text("{}")
    (run / "job.json").write_text(a_job().model_dump_json(by_alias=True))
    lines = [
        {"step": 4, "loss": 0.63, "rewards/margins": 0.1, "rewards/accuracies": 0.75},
        {"step": 4, "eval_loss": 0.7},
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    ends(run, "prepare", 0)
    return run


def ends(
    run: Path,
    phase: names.Phase,
    code: int,
    message: str = "",
    *,
    attempt: int = 1,
    rank: int = 0,
    time: int = 0,
    findings: tuple[Finding, ...] = (),
    **more: Any,
) -> None:
    """A process leaves its last words."""
    outcome: Any = {0: "Succeeded", ExitCode.SIGTERM: "Stopped"}.get(code, "Failed")
    words = Termination(
        phase=phase, attempt=attempt, outcome=outcome, exit_code=code, message=message, rank=rank,
        progress=Progress(phase=phase, attempt=attempt, step=4, findings=findings), **more,
    )  # fmt: skip
    path = run / f"termination-{phase}-{attempt}-{rank}.json"
    path.write_text(words.to_text())
    os.utime(path, (1_700_000_000 + time,) * 2)


def test_a_failed_run_says_which_rank_and_what_to_do(folder: Path) -> None:
    ends(folder, "train", ExitCode.PEER_LOST, "Rank 1 went away", time=2)
    ends(folder, "train", ExitCode.NON_FINITE, "The loss was NaN", rank=1, time=1)
    text = said(str(folder)).output
    assert text.startswith(f"The run in {folder} has failed: the loss or the gradient stayed NaN or infinite.")
    assert "train attempt 1, rank 1, ended with exit code 76 (NonFiniteLoss): “The loss was NaN”" in text
    assert "spec.training.learningRate in the job file; then dpo run FILE --fresh" in text
    assert "kubectl" not in text


def test_a_preview_changes_nothing_of_where_a_run_is(folder: Path) -> None:
    ends(folder, "train", ExitCode.NON_FINITE, "The loss was NaN", time=1)
    ends(folder, "prepare", 0, time=2)
    assert "has failed" in said(str(folder)).output
    ends(folder, "train", 0, time=3)
    ends(folder, "export", 0, time=4)
    ends(folder, "prepare", 0, time=5)
    assert "is complete" in said(str(folder)).output


def test_earlier_attempts_are_what_was_tried(folder: Path) -> None:
    ends(folder, "train", ExitCode.INTERNAL_ERROR, "CUDA error", time=1)
    ends(folder, "train", ExitCode.VOLUME_ERROR, "no space left on device", attempt=2, time=2)
    (folder / "checkpoints" / "attempt").write_text("2\n")
    text = said(str(folder)).output
    assert "attempt 1 of the training ended after step 4: InternalError (counted). “CUDA error”" in text
    assert "continue from the last checkpoint: dpo run FILE" in text


def test_a_run_that_is_killed_left_no_words(folder: Path) -> None:
    text = said(str(folder)).output
    assert "is not at work and not at its end" in text
    assert "Its train was killed, or did not begin. The newest checkpoint has step 4." in text
    ends(folder, "train", ExitCode.SIGTERM, time=1)
    assert "It was stopped." in said(str(folder)).output


def test_a_run_at_work_is_told_by_its_lock(folder: Path) -> None:
    with locked(folder):
        text = said(str(folder)).output
    assert "is running the training" in text
    assert "Training: loss 0.6300, margin 0.1000, accuracy 0.75." in text


def test_a_finished_run_says_whether_it_learned(folder: Path) -> None:
    ends(folder, "train", 0, time=1)
    ends(folder, "export", 0, time=2)
    assert said(str(folder)).output.startswith(f"The run in {folder} is complete and healthy.")
    finding = a_finding(Code.GIBBERISH)
    few = Finding(code="FewTrainingPairs", severity="Warning", cause="8 pairs are few.")
    ends(folder, "prepare", 0, findings=(few,))
    listed = [each.model_dump(mode="json") for each in (finding, few)]
    (folder / "diagnosis.json").write_text(json.dumps({"version": 1, "findings": listed}))
    text = said(str(folder)).output
    assert text.startswith(f"The run in {folder} is complete, but not healthy: Gibberish.")
    assert finding.sentence in text
    assert text.count("FewTrainingPairs (Warning, in the data): 8 pairs are few.") == 1
    assert text.count("8 pairs are few.") == 1
    document = json.loads(said(str(folder), "-o", "json").output)
    assert (document["kind"], document["findings"][0]["code"]) == ("ill", "Gibberish")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    done = said(str(tmp_path))
    assert done.exit_code == ExitCode.INPUT_NOT_FOUND
    assert "is not the work folder of a run" in done.output


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    return FakeKubectl(tmp_path, monkeypatch)


def a_waiting_job(cluster: FakeKubectl) -> None:
    """A job whose pod has no node, with its pods and events."""
    pod = raw_pod(0, **unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."))
    status = decide(a_status(), a_view(a_child(), ChildPod.from_raw(pod), ChildPod.from_raw(raw_pod(1)))).status
    raw = a_job().model_dump(mode="json", by_alias=True, exclude_none=True) | {"status": status.to_dict()}
    cluster.answer("get dpojobs.dpo-operator.dev pairs", raw)
    cluster.answer(f"get pods --selector={names.LABEL_UID}={UID}", {"items": [pod]})


def test_a_job_in_a_cluster_is_explained(cluster: FakeKubectl) -> None:
    a_waiting_job(cluster)
    cluster.answer("get events", {"items": []})
    done = said("pairs", "-n", "default", "--context", "here")
    assert done.exit_code == 0, done.output
    assert done.output.startswith("pairs (namespace default) is pending: no node has room for a pod.")
    assert "kubectl --context=here -n default describe pod pairs-train-1-0-x7k2p" in done.output
    assert "--namespace=default" in cluster.calls()[0]


def test_what_may_not_be_read_is_named_and_the_rest_is_told(cluster: FakeKubectl) -> None:
    a_waiting_job(cluster)
    cluster.refuse(
        "get events", 'Error from server (Forbidden): events is forbidden: User "a" cannot list resource "events"'
    )
    text = said("pairs", "-n", "default").output
    assert "no node has room for a pod" in text
    assert "Its events could not be read: " in text
    assert "ask the administrator for the right" in text


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ('Error from server (NotFound): dpojobs.dpo-operator.dev "pairs" not found', "kubectl dpo list -A"),
        ('error: the server doesn\'t have a resource type "dpojobs"', "install the operator"),
        (
            "The connection to the server localhost:8080 was refused - did you specify the right host or port?",
            "KUBECONFIG",
        ),
        ("The connection to the server 10.0.0.1:6443 was refused", "API server can't be reached"),
        ("error: You must be logged in to the server (Unauthorized)", "log in again"),
        ('error: context "there" does not exist', "get-contexts"),
    ],
    ids=["not found", "no CRD", "no kubeconfig", "gone", "logged out", "no context"],
)
def test_what_a_cluster_refuses_is_one_line_with_a_way_out(cluster: FakeKubectl, words: str, hint: str) -> None:
    cluster.refuse("get", words)
    done = said("pairs", "-n", "default")
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    assert words in done.output
    assert hint in done.output
    assert len(done.output.splitlines()) == 1


def test_the_plugin_always_asks_the_cluster(
    cluster: FakeKubectl, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_waiting_job(cluster)
    cluster.answer("get events", {"items": []})
    monkeypatch.chdir(folder.parent)
    assert "The run in pairs" in said("pairs").output
    monkeypatch.setattr(sys, "argv", ["/usr/bin/kubectl-dpo"])
    assert "pairs (namespace default)" in said("pairs").output


@pytest.fixture
def rounds(folder: Path) -> Path:
    """A run in the training of its second round."""
    judge = {"type": "builtin", "builtin": {"name": "length", "tokens": 5}}
    (folder / "job.json").write_text(a_job(iterative={"judge": judge}).model_dump_json(by_alias=True))
    for number in (1, 2):
        leg = folder / "rounds" / f"000{number}"
        (leg / "checkpoints" / "step-00000009").mkdir(parents=True)
        (leg / "checkpoints" / "step-00000009" / "manifest.json").write_text("{}")
        (leg / "round.json").write_text(json.dumps({"round": number, "prompts": 100, "pairs": 10 * number}))
    ends(folder, "export", 0, export_path="rounds/0001/export", time=1)
    ends(folder, "judge", 0, attempt=2, round=RoundReport(round=2), time=2)
    return folder


def test_a_run_with_rounds_says_in_which_it_is(rounds: Path) -> None:
    text = said(str(rounds)).output
    assert "Its train of round 2 was killed, or did not begin. The newest checkpoint has step 9." in text
    with locked(rounds):
        text = said(str(rounds)).output
    assert "is running the training of round 2" in text
    assert "Round 1: 10 pairs of 100 prompts." in text
    assert "Round 2: 20 pairs of 100 prompts." in text


def test_the_export_of_a_round_is_not_the_end(rounds: Path) -> None:
    ends(rounds, "export", 0, attempt=2, export_path="rounds/0002/export", time=5)
    with locked(rounds):
        assert "is running the generation of answers of round 3" in said(str(rounds)).output
    ends(rounds, "export", 0, export_path="export", time=6)
    (rounds / "rounds" / "0002" / "metrics.jsonl").write_text(json.dumps({"step": 9, "loss": 0.5}) + "\n")
    text = said(str(rounds)).output
    assert "is complete" in text
    assert "loss 0.5000" in text
    assert "Round 2: 20 pairs of 100 prompts." in text
