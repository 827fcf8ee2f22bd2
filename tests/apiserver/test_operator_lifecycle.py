"""Changes, retries, re-creations and deletions in the life of jobs, with a real API server and its controllers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api import names
from tests.apiserver.client import Requests
from tests.apiserver.hands import Hands, last_words, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.cluster.rig.binaries import binary
from tests.cluster.rig.control_plane import ControlPlane

pytestmark = pytest.mark.apiserver

NAMESPACE = "lifecycle"
DOOMED = "doomed"


@pytest.fixture(scope="module")
def hands(control_plane: ControlPlane, dpojobs: Requests) -> Hands:
    for name in (NAMESPACE, DOOMED):
        control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return Hands(dpojobs, NAMESPACE)


@pytest.fixture(scope="module")
def operator(
    hands: Hands, control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    log: Path = tmp_path_factory.mktemp("lifecycle") / "operator.log"
    with running(OperatorProcess(control_plane.kubeconfig, f"{NAMESPACE},{DOOMED}", log)) as process:
        yield process


def start_training(hands: Hands, job: str, count: int, attempt: int = 1) -> list[dict[str, Any]]:
    """Pods of an attempt at training, bound to a node that no kubelet serves, and running."""
    pods = hands.pods(job, "train", attempt, count)
    for pod in pods:
        name = pod["metadata"]["name"]
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}}
        # The garbage collector of pods spares those of a missing node that is new to it for 40 s.
        binding["target"] = {"apiVersion": "v1", "kind": "Node", "name": f"node-{job}-{attempt}"}
        answer = hands.requests.send("POST", hands.path("pods", f"{name}/binding"), binding)
        assert answer.accepted, answer.message
        hands.start(pod)
    wait_until("training", lambda: hands.status(job).get("state") == "Training")
    return pods


def saved_and_gone(hands: Hands, pods: list[dict[str, Any]]) -> None:
    """What a kubelet does to deleted pods: they had their whole grace period."""
    for pod in pods:
        name = pod["metadata"]["name"]
        going = wait_until(f"deletion of {name}", lambda name=name: _deleted(hands, name))
        assert going["metadata"]["deletionGracePeriodSeconds"] == 120
        hands.end(pod, 143)
        hands.delete("pods", name, gracePeriodSeconds=0)


def _deleted(hands: Hands, name: str) -> dict[str, Any]:
    pod = hands.get("pods", name) or {}
    return pod if pod.get("metadata", {}).get("deletionTimestamp") else {}


@pytest.mark.fault(17, 43)
@pytest.mark.parametrize("then", ["nothing", "another", "restart"])
def test_a_pod_on_a_lost_node_does_not_outlive_its_deleted_job(
    hands: Hands, operator: OperatorProcess, then: str
) -> None:
    """Nobody is there to say that it ended; meanwhile it would hold its claim and its namespace.

    then: another job of the name is made, or the operator starts anew and hears nothing of the pod.
    """
    name = f"left-{then}"
    hands.apply(name)
    hands.run_phase(name, "prepare")
    lost, saving = start_training(hands, name, 2)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    # Of the node's taint, and of the node that is silent.
    conditions = [
        {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "lastTransitionTime": now},
        {"type": "Ready", "status": "False", "lastTransitionTime": now},
    ]
    hands.patch("pods", f"{lost['metadata']['name']}/status", {"status": {"conditions": conditions}})
    if then == "restart":
        operator.kill()
    hands.delete("dpojobs", name)
    wait_until("deletion", lambda: _deleted(hands, lost["metadata"]["name"]))
    if then == "restart":
        operator.start()
    elif then == "another":
        hands.apply(name)
    wait_until("its end", lambda: hands.get("pods", lost["metadata"]["name"]) is None, 40)
    assert _deleted(hands, saving["metadata"]["name"]), "a pod whose node answers has its whole grace period"
    saved_and_gone(hands, [saving])
    hands.delete("dpojobs", name)
    wait_until(
        "an end of everything", lambda: not [p for p in hands.children("pods", name) if p["spec"].get("nodeName")]
    )
    wait_until("no claim of the name", lambda: hands.get("dpojobs", name) is None)


@pytest.mark.fault(32, 42)
def test_resize_saves_and_goes_on(hands: Hands, operator: OperatorProcess) -> None:
    hands.apply("resize")
    hands.run_phase("resize", "prepare")
    pods = start_training(hands, "resize", 2)
    hands.patch("dpojobs", "resize", {"spec": {"nodes": 1}})
    saved_and_gone(hands, pods)
    start_training(hands, "resize", 1, attempt=2)
    status = hands.status("resize")
    (record,) = status["restartHistory"]
    assert (record["reason"], record["counting"], status["countedRestarts"]) == ("Resized", "Planned", 0)
    assert "Resized" in hands.events("resize")
    assert 'dpojob_restarts_total{dpojob="resize",namespace="lifecycle",reason="Resized"} 1.0' in operator.metrics()
    assert len(hands.children("configmaps", "resize")) == 2
    (budget,) = hands.children("poddisruptionbudgets", "resize")
    assert budget["spec"]["minAvailable"] == 0
    hands.delete("dpojobs", "resize")


def test_a_volume_of_one_node_refuses_a_second(hands: Hands, operator: OperatorProcess) -> None:
    hands.apply("lonely", nodes=1)
    hands.run_phase("lonely", "prepare")
    start_training(hands, "lonely", 1)
    hands.patch("dpojobs", "lonely", {"spec": {"nodes": 2}})
    wait_until("refusal", lambda: hands.condition("lonely", "Resized") == ("False", "ResizeRefused"))
    assert hands.status("lonely")["attempts"]["train"] == 1
    assert hands.condition("lonely", "Running")[0] == "True"
    # The event is written after the status.
    wait_until("event", lambda: "ResizeRefused" in hands.events("lonely"))
    assert hands.events("lonely").count("ResizeRefused") == 1
    hands.delete("dpojobs", "lonely")


def test_suspension_and_deadline_let_pods_save(hands: Hands, operator: OperatorProcess) -> None:
    hands.apply("patient", nodes=1)
    hands.run_phase("patient", "prepare")
    pods = start_training(hands, "patient", 1)
    hands.patch("dpojobs", "patient", {"spec": {"suspend": True}})
    saved_and_gone(hands, pods)
    hands.patch("dpojobs", "patient", {"spec": {"suspend": False}})
    pods = start_training(hands, "patient", 1, attempt=2)
    hands.patch("dpojobs", "patient", {"spec": {"activeDeadlineSeconds": 1}})
    wait_until("end", lambda: hands.condition("patient", "Failed") == ("True", "DeadlineExceeded"))
    saved_and_gone(hands, pods)
    hands.delete("dpojobs", "patient")


def kubectl_dpo(plane: ControlPlane, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`kubectl dpo`, with the kubectl of this tier on its PATH."""
    argv = [sys.executable, "-c", "from dpo_operator.cli.main import app; app()", *arguments]
    argv += ["-n", NAMESPACE, "--kubeconfig", str(plane.kubeconfig)]
    found = binary("kubectl").parent
    environment = os.environ | {"PATH": f"{found}:{os.environ['PATH']}"}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


def test_a_failed_job_is_retried_by_command(
    hands: Hands, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    hands.apply("again", nodes=1, cleanPodPolicy="All")
    hands.run_phase("again", "prepare")
    assert "only a failed job" in kubectl_dpo(control_plane, "retry", "again").stderr
    (pod,) = hands.pods("again", "train", 1, 1)
    hands.end(pod, 65, last_words(65, "train", 1, message="out of luck"))
    wait_until("failure", lambda: hands.status("again").get("state") == "Failed")
    wait_until("clean-up", lambda: not hands.children("jobs", "again"))
    done = kubectl_dpo(control_plane, "resume", "again")
    assert done.returncode == 0, done.stderr
    (pod,) = hands.pods("again", "train", 2, 1)
    assert hands.condition("again", "Failed") == ("False", "Retried")
    assert kubectl_dpo(control_plane, "suspend", "again").returncode == 0
    wait_until("suspension", lambda: hands.status("again").get("state") == "Suspended")
    assert kubectl_dpo(control_plane, "resume", "again").returncode == 0
    wait_until("resumption", lambda: hands.status("again").get("state") != "Suspended")
    missing = kubectl_dpo(control_plane, "suspend", "nobody")
    assert missing.returncode == 1
    assert "not found" in missing.stderr
    hands.delete("dpojobs", "again")


@pytest.mark.fault(43, 44)
def test_a_name_used_again_and_again_adopts_nothing(hands: Hands, operator: OperatorProcess) -> None:
    uids = []
    for turn in range(20):
        made = hands.apply("same", nodes=1, checkpoint={"volume": {"retention": "Delete"}})
        uids.append(made["metadata"]["uid"])
        if turn % 3 == 0:
            wait_until("a Job", lambda: hands.children("jobs", "same"))
        if turn < 19:
            hands.delete("dpojobs", "same")

    def last_alone() -> bool:
        jobs = hands.children("jobs", "same")
        return bool(jobs) and {job["metadata"]["labels"][names.LABEL_UID] for job in jobs} == {uids[-1]}

    wait_until("the last job alone", last_alone, seconds=60)
    hands.run_phase("same", "prepare")
    status = hands.status("same")
    assert (status["attempts"]["prepare"], status["restarts"]) == (1, 0)
    for kind in ("jobs", "pods", "services"):
        wait_until(
            f"no old {kind}",
            lambda kind=kind: (
                {c["metadata"]["labels"][names.LABEL_UID] for c in hands.children(kind, "same")} == {uids[-1]}
            ),
        )
    hands.delete("dpojobs", "same")


@pytest.mark.fault(46)
def test_a_namespace_is_deleted_without_a_fight(
    hands: Hands, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    doomed = Hands(hands.requests, DOOMED)
    for index in range(3):
        doomed.apply(f"job-{index}", nodes=1)
    doomed.run_phase("job-0", "prepare")
    doomed.pods("job-0", "train", 1, 1)
    before = len(operator.log.read_text())
    # Its controller waits for the grace that pods could have had, so this takes a minute.
    control_plane.kubectl("delete", "namespace", DOOMED, "--timeout=150s", timeout=160)
    said = operator.log.read_text()[before:]
    assert "being terminated" not in said, said[-3000:]
    assert said.count("trying again") <= 3, said[-3000:]


def test_a_token_survives_a_dead_operator_once(hands: Hands, operator: OperatorProcess) -> None:
    hands.apply("crash", nodes=1)
    (pod,) = hands.pods("crash", "prepare", 1, 1)
    hands.end(pod, 65, last_words(65, "prepare", 1, message="no"))
    wait_until("failure", lambda: hands.status("crash").get("state") == "Failed")
    operator.kill()
    hands.patch("dpojobs", "crash", {"metadata": {"annotations": {names.ANNOTATION_RETRY: "one"}}})
    operator.start()
    hands.pods("crash", "prepare", 2, 1)
    operator.kill()
    operator.start()
    status = hands.status("crash")
    assert (status["attempts"]["prepare"], status["lastHandledRetry"]) == (2, "one")
    assert json.dumps(status).count('"Retried"') == 1
    hands.delete("dpojobs", "crash")
