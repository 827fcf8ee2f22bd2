"""`kubectl dpo submit`, `list`, `status`, `logs`, `events` and `delete`: what they ask kubectl for and what they print."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from dpo_operator.api import names
from dpo_operator.api.diagnosis import Code
from dpo_operator.cli import inspect, joblogs, kubectl
from dpo_operator.cli.main import app
from dpo_operator.cli.statusview import History, sparkline
from dpo_operator.planning.findings import as_status
from tests.unit.cli.fakekubectl import FakeKubectl
from tests.unit.explain.cases import a_finding, raw_pod
from tests.unit.planning.build import UID, a_child, a_job, a_pod, a_reading, a_status, a_view, decide
from tests.unit.planning.test_words_of_strangers import EVIL

pytestmark = pytest.mark.unit

JOB = "get dpojobs.dpo-operator.dev pairs"
Raw = dict[str, Any]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    return FakeKubectl(tmp_path, monkeypatch)


def said(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def raw_job(state: str | None = None, step: int = 12, **fields: Any) -> Raw:
    """A job that trains, as the API server has it."""
    view = a_view(a_child(), a_pod(0), a_pod(1), progress=a_reading(step, checkpoint=10), stalled_seconds=1.0)
    status = decide(a_status(), view).status.model_copy(update=fields).to_dict()
    raw = a_job().model_dump(mode="json", by_alias=True, exclude_none=True)
    raw["metadata"]["creationTimestamp"] = "2026-01-01T11:00:00Z"
    return raw | {"status": status | ({"state": state} if state else {})}


def naps(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], None]) -> None:
    """Between two looks at the cluster, each of these happens once; none may be left to wait for."""
    left = list(steps)
    for module in (inspect, joblogs):
        monkeypatch.setattr(module.time, "sleep", lambda _seconds: left.pop(0)())


def test_the_list_has_the_columns_that_kubectl_has(cluster: FakeKubectl) -> None:
    cluster.answer("get dpojobs.dpo-operator.dev --all-namespaces", {"items": [raw_job()]})
    head, line = said("list", "-A").stdout.splitlines()
    assert head.split() == [
        "NAMESPACE",
        "NAME",
        "STATE",
        "STEP",
        "PROGRESS",
        "ETA",
        "LOSS",
        "MARGIN",
        "ACCURACY",
        "HEALTHY",
        "RESTARTS",
        "AGE",
    ]
    assert line.split()[:9] == ["default", "pairs", "Training", "12", "12%", "1h12m", "0.6312", "0.1250", "0.75"]


def test_an_empty_list_says_where_to_look(cluster: FakeKubectl) -> None:
    cluster.answer("get dpojobs.dpo-operator.dev", {"items": []})
    done = said("list", "-n", "team")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "-A looks in all namespaces" in done.stderr


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_the_objects_themselves(cluster: FakeKubectl, form: str, read: Callable[[str], Any]) -> None:
    cluster.answer(JOB, raw_job())
    assert read(said("status", "pairs", "-o", form).stdout) == raw_job()
    cluster.answer("get dpojobs.dpo-operator.dev", {"items": [raw_job()]})
    assert read(said("list", "-o", form).stdout) == {"items": [raw_job()]}


def test_the_status_shows_figures_health_and_findings(cluster: FakeKubectl) -> None:
    finding = a_finding(Code.SWAPPED_LABELS)
    cluster.answer(JOB, raw_job(findings=[as_status(finding, "train")]))
    text = said("status", "pairs").stdout
    assert "step 12 of 100 (12%)" in text
    assert re.search(r"^margin +0.1250", text, re.MULTILINE)
    assert f"SwappedLabels: {finding.sentence}" in text
    assert re.search(r"^checkpoint +step 10", text, re.MULTILINE)


def test_a_job_is_watched_to_its_end(cluster: FakeKubectl, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.answer(JOB, raw_job())
    naps(
        monkeypatch,
        lambda: cluster.answer(JOB, raw_job(step=50)),
        lambda: cluster.answer(JOB, raw_job("Complete", step=100)),
    )
    done = said("status", "pairs", "-w")
    assert done.exit_code == 0
    assert "step 12 of 100" in done.stdout
    assert "step 50 of 100" in done.stdout
    assert "Complete" in done.stdout
    # What did not change is not repeated.
    assert done.stdout.count("pairs (namespace default)") == 1


def test_watching_a_job_that_fails_fails(cluster: FakeKubectl) -> None:
    cluster.answer(JOB, raw_job("Failed"))
    assert said("status", "pairs", "-w").exit_code == 1


TIMED_OUT = "Unable to connect to the server: net/http: request canceled (Client.Timeout exceeded)"


def test_watching_outlives_an_api_server_that_is_away(cluster: FakeKubectl, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.answer(JOB, raw_job())
    naps(
        monkeypatch,
        lambda: cluster.refuse(JOB, TIMED_OUT),
        lambda: None,
        lambda: cluster.answer(JOB, raw_job("Complete", step=100)),
    )
    done = said("status", "pairs", "-w")
    assert done.exit_code == 0
    assert done.stderr.count("no answer, asking again") == 1


@pytest.mark.parametrize(
    ("words", "looks"), [(TIMED_OUT, 3), ('Error from server (NotFound): dpojobs "pairs" not found', 1)]
)
def test_a_watch_without_an_answer_is_no_failed_job(
    cluster: FakeKubectl, monkeypatch: pytest.MonkeyPatch, words: str, looks: int
) -> None:
    monkeypatch.setattr(kubectl, "FAILED_IN_A_ROW", 2)
    cluster.answer(JOB, raw_job())
    naps(monkeypatch, lambda: cluster.refuse(JOB, words), *[lambda: None] * (looks - 1))
    assert said("status", "pairs", "-w").exit_code == inspect.UNKNOWN
    # Before the first answer none is waited for.
    assert said("status", "pairs", "-w").exit_code == inspect.UNKNOWN
    assert said("logs", "pairs", "-f").exit_code == 1


def test_a_sparkline_shows_the_course() -> None:
    assert sparkline([1.0]) == ""
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 3]) == "▁▁"
    assert sparkline([float(n) for n in range(400)])[::13] == "▁▃▆█"
    history = History()
    for step, margin in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.9)):
        found = a_reading(step)
        reading = found.model_copy(update={"train": found.train.model_copy(update={"reward_margin": margin})})
        history.add(decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1), progress=reading)).status)
    # After a restart at step 1, what came after it is not drawn.
    assert history.points["margin"] == {1: 0.1, 2: 0.9}


def pods_of(attempt: int, *pods: Raw) -> tuple[str, Raw]:
    selector = f"{names.LABEL_UID}={UID},{names.LABEL_PHASE}=train,{names.LABEL_ATTEMPT}={attempt}"
    return selector, {"items": list(pods)}


def has_logs(cluster: FakeKubectl, attempt: int, text: str, *pods: Raw) -> None:
    selector, found = pods_of(attempt, *pods)
    cluster.answer(f"get pods --selector={selector}", found)
    cluster.answer(f"logs --selector={selector}", text)


def test_each_line_of_a_log_has_its_pod(cluster: FakeKubectl) -> None:
    cluster.answer(JOB, raw_job())
    lines = f"[pod/pairs-train-1-0-x7k2p/trainer] step 1\n[pod/pairs-train-1-1-x7k2p/trainer] \x1b[2Jstep\t1\n[pod/other/trainer] {EVIL[:30]!r}\n"
    has_logs(cluster, 1, lines, raw_pod(1, phase="Running"), raw_pod(0, phase="Running"))
    done = said("logs", "pairs")
    assert done.stdout.splitlines()[:2] == ["train 0 | step 1", "train 1 | �[2Jstep\t1"]
    assert "\x1b" not in done.stdout
    assert "train, attempt 1:" in done.stderr
    (call,) = [call for call in cluster.calls() if " logs " in f" {call}" or call.startswith("logs")]
    assert "--container=trainer" in call
    assert "--max-log-requests=2" in call
    assert "--follow" not in call


def test_logs_are_followed_over_a_restart_to_the_end(cluster: FakeKubectl, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = {"phase": "Failed"}
    cluster.answer(JOB, raw_job())
    has_logs(cluster, 1, "[pod/pairs-train-1-0-x7k2p/trainer] crash\n", raw_pod(0, **ended), raw_pod(1, **ended))
    second = a_status(attempt=2).attempts

    def restarts() -> None:
        cluster.answer(JOB, raw_job(attempts=second, message="Its pods are starting."))
        has_logs(cluster, 2, "", raw_pod(0, attempt=2))

    def runs() -> None:
        has_logs(cluster, 2, "[pod/pairs-train-2-0-x7k2p/trainer] done\n", raw_pod(0, attempt=2, phase="Succeeded"))

    def is_away() -> None:
        cluster.refuse(JOB, TIMED_OUT)

    naps(
        monkeypatch, is_away, restarts, runs, is_away, lambda: cluster.answer(JOB, raw_job("Complete", attempts=second))
    )
    done = said("logs", "pairs", "-f")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == ["train 0 | crash", "train 0 | done"]
    told = [line for line in done.stderr.splitlines() if not line.startswith("no answer, asking again")]
    assert told == ["train, attempt 1:", "waiting: Its pods are starting.", "train, attempt 2:"]
    assert len(done.stderr.splitlines()) == len(told) + 2


def test_a_log_does_not_stop_at_many_warnings(cluster: FakeKubectl) -> None:
    cluster.answer(JOB, raw_job("Complete"))
    has_logs(cluster, 1, "", raw_pod(0, phase="Succeeded"))
    selector, _ = pods_of(1)
    cluster.answer(f"logs --selector={selector}", "[pod/pairs-train-1-0-x7k2p/trainer] done\n", "W: slow\n" * 20_000)
    assert said("logs", "pairs").stdout == "train 0 | done\n"


def test_logs_that_are_gone_are_said_to_be(cluster: FakeKubectl) -> None:
    cluster.answer(JOB, raw_job(attempts=a_status(attempt=2).attempts))
    has_logs(cluster, 2, "[pod/pairs-train-2-0-x7k2p/trainer] now\n", raw_pod(0, attempt=2, phase="Running"))
    has_logs(cluster, 1, "")
    done = said("logs", "pairs", "--previous")
    assert done.exit_code == 1
    assert "no pod of train attempt 1 has a log" in done.stderr
    assert "kubectl dpo why pairs" in done.stderr


def test_events_are_those_of_the_job_and_its_children(cluster: FakeKubectl) -> None:
    def event(kind: str, name: str, time: str, message: str, uid: str = "") -> Raw:
        about = {"kind": kind, "name": name, "uid": uid}
        return {"involvedObject": about, "type": "Warning", "reason": "R", "message": message, "lastTimestamp": time}

    found = [
        event("Pod", "pairs-train-2-0-x7k2p", "2026-01-01T12:02:00Z", EVIL),
        event("DPOJob", "pairs", "2026-01-01T12:00:00Z", "first", UID),
        event("DPOJob", "pairs", "2026-01-01T12:01:00Z", "of an earlier job", "other"),
        event("Pod", "pairs-2-train-1-0-x", "2026-01-01T12:01:00Z", "of another job"),
        event("Job", "pairs-train-1", "2026-01-01T12:01:00Z", "second"),
        event("Job", "pairs-mirror-3", "2026-01-01T12:01:10Z", "third"),
        event("Pod", "pairs-mirror-3-x7k2p", "2026-01-01T12:01:20Z", "fourth"),
        event("Pod", "pairs-mirror-3-2-x", "2026-01-01T12:01:20Z", "of nobody"),
    ]
    cluster.answer(JOB, raw_job())
    cluster.answer("get events", {"items": found})
    head, *lines = said("events", "pairs").stdout.splitlines()
    assert head.split() == ["AGE", "TYPE", "REASON", "OBJECT", "MESSAGE"]
    words = ("first", "second", "third", "fourth", "done�[2J")
    assert [word in line for word, line in zip(words, lines, strict=True)] == [True] * 5
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("volume", "kept"),
    [
        ({}, "its files stay on the claim pairs-work"),
        ({"retention": "Delete"}, "with its claim pairs-work and everything on it"),
        ({"claimName": "mine"}, "its files stay on the claim mine"),
    ],
    ids=["default", "retention Delete", "a claim of one's own"],
)
def test_a_deletion_says_what_stays(cluster: FakeKubectl, volume: dict[str, str], kept: str) -> None:
    job = raw_job()
    job["spec"]["checkpoint"] = {"volume": volume}
    cluster.answer(JOB, job)
    cluster.answer("delete dpojobs.dpo-operator.dev pairs --wait=false", "deleted")
    done = said("delete", "pairs")
    assert done.exit_code == 0
    assert kept in done.stderr


def test_a_file_is_checked_before_it_is_sent(cluster: FakeKubectl, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "pairs"}}
    spec = {"model": {"name": "org/model"}, "data": {"train": {"source": "org/pairs"}}}
    path.write_text(yaml.safe_dump(document | {"spec": spec | {"nodes": 0}}))
    assert said("submit", str(path)).exit_code == 78
    path.write_text(yaml.safe_dump(document | {"spec": spec}))
    cluster.answer(f"create --filename={path}", "dpojob.dpo-operator.dev/pairs created\n")
    done = said("submit", str(path), "-n", "team")
    assert done.exit_code == 0
    assert "pairs created" in done.stderr
    assert "kubectl dpo status pairs -n team -w" in done.stderr
    assert len(cluster.calls()) == 1
    cluster.refuse("create", 'Error from server (AlreadyExists): dpojobs.dpo-operator.dev "pairs" already exists')
    assert "give the job another name" in said("submit", str(path)).stderr
