"""The operator's process against a real API server with its controllers; the test stands in for the kubelets."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dpo_operator.api import names
from dpo_operator.api.models.config import shape_of
from tests.apiserver.client import Requests
from tests.apiserver.hands import NAMESPACE, Hands, last_words, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.cluster.rig.control_plane import ControlPlane
from tests.unit.sizing.build import SMALL

pytestmark = pytest.mark.apiserver

GOES_WITH_THE_JOB = {"volume": {"retention": "Delete"}}


@pytest.fixture(scope="module")
def hands(control_plane: ControlPlane, dpojobs: Requests) -> Hands:
    control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    return Hands(dpojobs)


@pytest.fixture(scope="module")
def operator(
    hands: Hands, control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    log: Path = tmp_path_factory.mktemp("operator") / "operator.log"
    with running(OperatorProcess(control_plane.kubeconfig, NAMESPACE, log)) as process:
        yield process


@pytest.fixture
def alive(operator: OperatorProcess) -> Iterator[OperatorProcess]:
    """The operator, running before the test and after it."""
    yield operator
    if operator._process is None:
        operator.start()


class Rank:
    """A rank's /status, on a loopback address that stands for its pod."""

    def __init__(self, ip: str, **progress: object) -> None:
        self.ip = ip
        self.progress: dict[str, object] = {"phase": "train", "attempt": 1, "max_steps": 100, **progress}
        rank = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(rank.progress).encode()
                self.send_response(200 if self.path == "/status" else 404)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((ip, names.METRICS_PORT), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_whole_life(hands: Hands, alive: OperatorProcess) -> None:
    # Far too little memory: that is said, and changes nothing.
    hands.apply("life", pod={"resources": {"limits": {"memory": "64Mi"}}})
    report = {
        "train_pairs": 90, "eval_pairs": 10, "dropped": {"empty": 2}, "model": shape_of(SMALL).model_dump(mode="json"),
        "tokens": {"prompt": 5, "chosen": 5, "rejected": 5, "longest": 20},
    }  # fmt: skip
    hands.run_phase("life", "prepare", dataset=report)
    pods = hands.pods("life", "train", 1, 2)
    rank = Rank("127.0.0.11", step=37, train={"loss": 0.51234, "reward_margin": 0.4, "reward_accuracy": 0.75})
    try:
        for pod in pods:
            hands.start(pod, rank.ip)
        status = wait_until("progress", lambda: hands.status("life") if hands.status("life").get("progress") else None)
    finally:
        rank.close()
    assert (status["state"], status["workers"]) == ("Training", {"desired": 2, "started": 2})
    shown = status["progress"]
    assert (shown["percent"], shown["loss"], shown["rewardMargin"]) == ("37%", "0.5123", "0.4000")
    final = {"phase": "train", "attempt": 1, "step": 100, "max_steps": 100, "train": {"loss": 0.31}}
    for pod in pods:
        hands.end(pod, 0, last_words(0, "train", 1, progress=final))
    hands.run_phase("life", "export", export_path="export")
    wait_until("completion", lambda: hands.status("life").get("state") == "Complete")

    job = hands.get("dpojobs", "life")
    assert job is not None
    status = job["status"]
    assert "finalizers" not in job["metadata"]
    assert "annotations" not in job["metadata"]
    assert status["attempts"] == {"prepare": 1, "generate": 0, "judge": 0, "train": 1, "export": 1}
    assert (status["restarts"], status["dataset"]["trainPairs"], status["export"]["path"]) == (0, 90, "export")
    assert status["finalMetrics"]["loss"] == "0.3100"
    assert hands.condition("life", "Complete") == ("True", "Exported")
    assert hands.events("life") == [
        "Created", "Running", "Prepared", "PredictedNotToFit", "Created", "Running", "Trained", "Created", "Running",
        "Complete",
    ]  # fmt: skip
    for kind in ("jobs", "pods", "services", "configmaps"):
        for child in hands.children(kind, "life"):
            assert [o["kind"] for o in child["metadata"]["ownerReferences"]] in (["DPOJob"], ["Job"])
            assert not [f for f in child["metadata"].get("finalizers", ()) if "kopf" in f]
            assert not [a for a in child["metadata"].get("annotations", {}) if "kopf" in a]
    assert 'dpojob_status_state{dpojob="life",namespace="operator-tests",state="Complete"} 1.0' in alive.metrics()
    assert 'dpojob_final_loss{dpojob="life",namespace="operator-tests"} 0.31' in alive.metrics()


FLAT = {
    "code": "FlatLoss",
    "severity": "Unhealthy",
    "step": 37,
    "cause": "The loss is where it began (0.6931).",
    "suggestion": "Raise training.learningRate to 5e-6.",
    "setting": "training.learningRate",
    "figures": [{"name": "eval_rewards/margins", "value": 0.001, "limit": 0.006}],
}
SENTENCE = f"{FLAT['cause']} {FLAT['suggestion']}"


def test_findings_are_told_once_and_stay(hands: Hands, alive: OperatorProcess) -> None:
    """Also when the operator is killed. Others of the pod's findings are hostile."""
    hands.apply("flat", diagnosis={"stopOn": ["FlatLoss"]})
    few = {"code": "FewTrainingPairs", "severity": "Info", "cause": "train: only 20 pairs"}
    prepared = {"phase": "prepare", "attempt": 1, "diagnosed_step": 0, "findings": [few]}
    hands.run_phase("flat", "prepare", progress=prepared)
    pods = hands.pods("flat", "train", 1, 2)
    values = {"reward_accuracy": 0.96, "reward_margin": 0.001}
    rank = Rank("127.0.0.14", step=37, train=values, eval=values)
    try:
        for pod in pods:
            hands.start(pod, rank.ip)
        shown = wait_until("progress", lambda: hands.status("flat").get("progress"))
        assert (shown["accuracy"], hands.condition("flat", "Healthy")) == ("0.96 (margin near 0)", ("", ""))
        made_up = [
            {"code": f"Made{n}", "severity": "Info", "cause": "\x1b[31m" + "x\n" * 4000, "step": 2**53}
            for n in range(4)
        ]
        rank.progress |= {"diagnosed_step": 37, "findings": [FLAT, *made_up]}
        wait_until("health", lambda: hands.condition("flat", "Healthy") == ("False", "FlatLoss"))
        # An event is written after the status that announces it.
        wait_until("events", lambda: {"FlatLoss", "Made0"} <= set(hands.events("flat")))
        alive.kill()
        rank.progress |= {"step": 50, "diagnosed_step": 50, "findings": [FLAT]}
        alive.start()
        wait_until("progress", lambda: hands.status("flat")["progress"]["step"] == 50)
        wait_until("fewer findings", lambda: len(hands.status("flat")["findings"]) == 2)
        rank.progress |= {"diagnosed_step": 60, "findings": []}
        wait_until("health", lambda: hands.condition("flat", "Healthy")[0] == "True")
        rank.progress |= {"diagnosed_step": 70, "findings": [FLAT]}
        wait_until("health", lambda: hands.condition("flat", "Healthy") == ("False", "FlatLoss"))
    finally:
        rank.close()
    last = {"phase": "train", "attempt": 1, "step": 70, "diagnosed_step": 70, "findings": [FLAT]}
    hands.end(pods[0], 81, last_words(81, "train", 1, message=SENTENCE, progress=last))
    wait_until("failure", lambda: hands.condition("flat", "Failed") == ("True", "StoppedByDiagnosis"))
    status = hands.status("flat")
    assert SENTENCE in status["message"]
    assert [(f["code"], f["phase"], f["message"]) for f in status["findings"]] == [
        ("FlatLoss", "train", SENTENCE),
        ("FewTrainingPairs", "prepare", "train: only 20 pairs"),
    ]
    assert status["findings"][0]["figures"] == ["eval_rewards/margins 0.001 (limit 0.006)"]
    wait_until("event", lambda: "StoppedByDiagnosis" in hands.events("flat"))
    events = hands.events("flat")
    assert [events.count(code) for code in ("FewTrainingPairs", "FlatLoss", "StoppedByDiagnosis")] == [1, 1, 1]
    assert len([code for code in events if code.startswith("Made")]) == 1
    series = 'dpojob_finding{code="FlatLoss",dpojob="flat",namespace="operator-tests",severity="Unhealthy"} 1.0'
    assert series in alive.metrics()
    hands.delete("dpojobs", "flat")
    wait_until("no series", lambda: 'dpojob="flat"' not in alive.metrics())


def test_killed_rank_restarts_all_ranks_once_and_soon(hands: Hands, alive: OperatorProcess) -> None:
    hands.apply("killed")
    hands.run_phase("killed", "prepare")
    first = hands.pods("killed", "train", 1, 2)
    for pod in first:
        hands.start(pod)
    wait_until("training", lambda: hands.status("killed").get("state") == "Training")
    hands.end(first[0], 75, last_words(75, "train", 1, message="connection closed by peer"))
    begun = time.monotonic()
    hands.end(first[1], 137)
    wait_until("restart", lambda: hands.status("killed").get("restarts") == 1)
    assert time.monotonic() - begun < 3.0
    second = hands.pods("killed", "train", 2, 2)
    attempts = {
        p["metadata"]["labels"][names.LABEL_ATTEMPT]
        for p in hands.children("pods", "killed")
        if "train" in p["metadata"]["name"]
    }
    assert attempts == {"2"}
    assert not {p["metadata"]["uid"] for p in first} & {p["metadata"]["uid"] for p in second}
    (record,) = hands.status("killed")["restartHistory"]
    assert (record["reason"], record["attempt"], record["counting"]) == ("Killed", 1, "Counted")
    assert first[1]["metadata"]["name"] in record["message"]
    hands.run_all("killed", train=2)
    assert hands.status("killed")["restarts"] == 1
    assert 'dpojob_restarts_total{dpojob="killed",namespace="operator-tests",reason="Killed"} 1.0' in alive.metrics()


def test_bad_dataset_fails_with_the_trainers_words_before_training(hands: Hands, alive: OperatorProcess) -> None:
    hands.apply("bad-data")
    (pod,) = hands.pods("bad-data", "prepare", 1, 1)
    hands.end(pod, 65, last_words(65, "prepare", 1, message="2 of 10 rows have no chosen answer; see dropped.jsonl"))
    wait_until("failure", lambda: hands.status("bad-data").get("state") == "Failed")
    assert hands.condition("bad-data", "Failed") == ("True", "BadDataset")
    assert "2 of 10 rows have no chosen answer" in hands.status("bad-data")["message"]
    assert [job["metadata"]["name"] for job in hands.children("jobs", "bad-data")] == ["bad-data-prepare-1"]
    # Its log can still be read.
    assert [p["metadata"]["name"] for p in hands.children("pods", "bad-data")] == [pod["metadata"]["name"]]


def test_unsupported_setting_is_refused_with_a_condition(hands: Hands, alive: OperatorProcess) -> None:
    hands.apply("unsupported", training={"globalBatchSize": 2, "offload": "nvme"})
    wait_until("failure", lambda: hands.status("unsupported").get("state") == "Failed")
    assert hands.condition("unsupported", "Failed") == ("True", "Unsupported")
    assert "offload: nvme is not implemented yet; use cpu or none" in hands.status("unsupported")["message"]
    assert hands.children("jobs", "unsupported") == hands.children("configmaps", "unsupported") == []


def test_deleted_job_of_an_attempt_is_replaced_by_the_next_attempt(hands: Hands, alive: OperatorProcess) -> None:
    hands.apply("vanished")
    hands.run_phase("vanished", "prepare")
    for pod in hands.pods("vanished", "train", 1, 2):
        hands.start(pod)
    wait_until("training", lambda: hands.status("vanished").get("state") == "Training")
    hands.delete("jobs", "vanished-train-1")
    hands.run_all("vanished", train=2)
    status = hands.status("vanished")
    assert (status["restarts"], status["countedRestarts"]) == (1, 0)


def test_suspend_and_resume(hands: Hands, alive: OperatorProcess) -> None:
    hands.apply("paused")
    hands.run_phase("paused", "prepare")
    for pod in hands.pods("paused", "train", 1, 2):
        hands.start(pod)
    wait_until("training", lambda: hands.status("paused").get("state") == "Training")
    hands.patch("dpojobs", "paused", {"spec": {"suspend": True}})
    wait_until("suspension", lambda: hands.condition("paused", "Suspended") == ("True", "SuspendedBySpec"))
    wait_until(
        "no job", lambda: [j["metadata"]["name"] for j in hands.children("jobs", "paused")] == ["paused-prepare-1"]
    )
    hands.patch("dpojobs", "paused", {"spec": {"suspend": False}})
    hands.run_all("paused", train=2)
    assert hands.status("paused")["restarts"] == 0


def test_hang_is_noticed_by_the_operators_own_clock(hands: Hands, alive: OperatorProcess) -> None:
    hands.apply("hung", failurePolicy={"hangTimeoutSeconds": 10})
    hands.run_phase("hung", "prepare")
    rank = Rank("127.0.0.12", step=5)
    try:
        for pod in hands.pods("hung", "train", 1, 2):
            hands.start(pod, rank.ip)
        wait_until("training", lambda: hands.status("hung").get("state") == "Training")
        begun = time.monotonic()
        wait_until("restart", lambda: hands.status("hung").get("restarts") == 1)
        assert 8 < time.monotonic() - begun < 20
    finally:
        rank.close()
    (record,) = hands.status("hung")["restartHistory"]
    assert (record["reason"], record["step"]) == ("Hang", 5)
    hands.run_all("hung", train=2)


def test_killed_operator_goes_on_and_touches_no_pod(hands: Hands, alive: OperatorProcess) -> None:
    hands.apply("orphan")
    hands.run_phase("orphan", "prepare")
    pods = hands.pods("orphan", "train", 1, 2)
    rank = Rank("127.0.0.13", step=10)
    try:
        for pod in pods:
            hands.start(pod, rank.ip)
        wait_until("progress", lambda: hands.status("orphan").get("progress", {}).get("step") == 10)
        alive.kill()
        rank.progress["step"] = 20
        alive.start()
        begun = time.monotonic()
        wait_until("progress", lambda: hands.status("orphan").get("progress", {}).get("step") == 20, seconds=15)
        assert time.monotonic() - begun < 15
    finally:
        rank.close()
    assert {p["metadata"]["uid"] for p in hands.pods("orphan", "train", 1, 2)} == {p["metadata"]["uid"] for p in pods}
    assert hands.status("orphan")["restarts"] == 0
    hands.run_all("orphan")


def test_failure_while_the_operator_is_dead_is_found_later(hands: Hands, alive: OperatorProcess) -> None:
    hands.apply("late")
    hands.run_phase("late", "prepare")
    pods = hands.pods("late", "train", 1, 2)
    for pod in pods:
        hands.start(pod)
    wait_until("training", lambda: hands.status("late").get("state") == "Training")
    alive.kill()
    hands.end(pods[1], 70, last_words(70, "train", 1, message="KeyError: 'x'"))
    alive.start()
    hands.run_all("late", train=2)
    (record,) = hands.status("late")["restartHistory"]
    assert record["reason"] == "InternalError"
    assert "KeyError: 'x'" in record["message"]


def test_deletion_needs_no_operator_and_keeps_a_retained_volume(hands: Hands, alive: OperatorProcess) -> None:
    hands.apply("gone")
    hands.apply("gone-too", checkpoint=GOES_WITH_THE_JOB)
    for name in ("gone", "gone-too"):
        hands.pods(name, "prepare", 1, 1)
    begun = time.monotonic()
    assert alive.stop() == 0
    assert time.monotonic() - begun < 10
    for name in ("gone", "gone-too"):
        hands.delete("dpojobs", name)
        wait_until("deletion", lambda name=name: hands.get("dpojobs", name) is None, seconds=5)
        for kind in ("jobs", "pods", "services", "configmaps"):
            wait_until(f"no {kind}", lambda kind=kind, name=name: not hands.children(kind, name))
    assert hands.get("persistentvolumeclaims", "gone-work") is not None
    wait_until("no claim", lambda: hands.get("persistentvolumeclaims", "gone-too-work") is None)


def test_series_vanish_and_a_new_job_of_the_name_starts_over(hands: Hands, alive: OperatorProcess) -> None:
    old = hands.apply("again", checkpoint=GOES_WITH_THE_JOB)
    hands.pods("again", "prepare", 1, 1)
    wait_until("series", lambda: 'dpojob="again"' in alive.metrics())
    hands.delete("dpojobs", "again")
    wait_until("no series", lambda: 'dpojob="again"' not in alive.metrics())
    new = hands.apply("again", checkpoint=GOES_WITH_THE_JOB)
    wait_until(
        "own volume folder", lambda: hands.status("again").get("volume", {}).get("folder") == new["metadata"]["uid"]
    )
    (pod,) = hands.pods("again", "prepare", 1, 1)
    assert pod["metadata"]["labels"][names.LABEL_UID] == new["metadata"]["uid"] != old["metadata"]["uid"]
    assert hands.status("again")["attempts"]["prepare"] == 1


def test_quota_is_told_and_heals(hands: Hands, alive: OperatorProcess, control_plane: ControlPlane) -> None:
    used = len(hands.requests.send("GET", hands.path("jobs")).body["items"])
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "no-jobs", "namespace": NAMESPACE}}
    control_plane.apply(quota | {"spec": {"hard": {"count/jobs.batch": str(used)}}})
    wait_until("quota", lambda: (hands.get("resourcequotas", "no-jobs") or {}).get("status", {}).get("used"))
    try:
        hands.apply("refused")
        wait_until("refusal", lambda: hands.condition("refused", "Running") == ("False", "QuotaExceeded"))
        assert "exceeded quota: no-jobs" in hands.status("refused")["message"]
    finally:
        hands.delete("resourcequotas", "no-jobs")
    hands.pods("refused", "prepare", 1, 1)
    wait_until("healing", lambda: hands.condition("refused", "Running")[1] != "QuotaExceeded")


def test_missing_claim_is_waited_for(hands: Hands, alive: OperatorProcess, control_plane: ControlPlane) -> None:
    hands.apply("claimed", checkpoint={"volume": {"claimName": "mine"}})
    wait_until("condition", lambda: hands.condition("claimed", "Running") == ("False", "VolumeNotFound"))
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "mine", "namespace": NAMESPACE}}
    control_plane.apply(claim | {"spec": spec})
    (pod,) = hands.pods("claimed", "prepare", 1, 1)
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == "mine"


def test_finished_job_is_deleted_after_its_time_to_live(hands: Hands, alive: OperatorProcess) -> None:
    hands.apply("short-lived", training={"globalBatchSize": 2, "offload": "nvme"}, ttlSecondsAfterFinished=2)
    wait_until("failure", lambda: hands.status("short-lived").get("state") == "Failed")
    wait_until("deletion", lambda: hands.get("dpojobs", "short-lived") is None)
