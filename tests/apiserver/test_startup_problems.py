"""What keeps a job from starting is said soon, once, and heals without a restart: real refusals of a real API server."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api import names
from dpo_operator.generate import crd
from tests.apiserver import nodes
from tests.apiserver.client import Requests
from tests.apiserver.hands import Hands, last_words, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.apiserver.webhook import webhook
from tests.cluster.rig import fixture
from tests.cluster.rig.control_plane import ControlPlane
from tests.cluster.rig.shell import wait_for

pytestmark = pytest.mark.campaign  # it waits for the back-off of controllers

# Bounds of what is promised: said within, and healed within after the cause is gone, seconds.
SAID = 30.0
HEALED = 60.0
GANG = {"nodes": 2, "gpusPerNode": 1}
ALONE = {"nodes": 1, "gpusPerNode": 1, "training": {"globalBatchSize": 1}}


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane with a scheduler."""
    with fixture.control_plane("startup", scheduler=True) as plane:
        plane.apply(crd.crd())
        established = ("wait", "--for=condition=Established", f"crd/{crd.NAME}", "--timeout=10s")
        wait_for("DPOJobs to be served", lambda: plane.kubectl(*established), timeout=30)
        nodes.volumes(plane, 30)
        yield plane


@pytest.fixture
def hands(plane: ControlPlane, request: pytest.FixtureRequest) -> Hands:
    """A namespace for each test."""
    words = request.node.name.removeprefix("test_").translate(str.maketrans("_[] ", "----"))
    name = words[:50].strip("-")
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    plane.wait_for_service_account(name)
    return Hands(Requests(plane), name)


@pytest.fixture
def operator(hands: Hands, plane: ControlPlane, tmp_path: Path) -> Iterator[OperatorProcess]:
    """With the resync that it has by default: nothing may depend on a shorter one."""
    process = OperatorProcess(plane.kubeconfig, hands.namespace, tmp_path / "operator.log", resync_seconds=30)
    with running(process):
        yield process
    assert "Traceback" not in process.log.read_text()


@pytest.fixture
def kubelets(plane: ControlPlane, hands: Hands) -> Iterator[nodes.Kubelets]:
    """Two nodes of one GPU each."""
    with nodes.kubelets(plane, hands) as kubelets:
        kubelets.add("gpu-1")
        kubelets.add("gpu-2")
        yield kubelets


def warnings(hands: Hands, job: str) -> list[dict[str, Any]]:
    path = (
        f"{hands.path('events')}?fieldSelector=involvedObject.name={job},involvedObject.kind={names.KIND},type=Warning"
    )
    items: list[dict[str, Any]] = hands.requests.send("GET", path).body["items"]
    return items


def said(hands: Hands, job: str, reason: str, *words: str, seconds: float = SAID) -> None:
    """The condition and one event give the reason and Kubernetes' own words."""
    wait_until(reason, lambda: hands.condition(job, "Running") == ("False", reason), seconds=seconds)
    message = hands.status(job)["message"]
    assert [word for word in words if word not in message] == [], message
    (event,) = wait_until("event", lambda: [e for e in warnings(hands, job) if e["reason"] == reason], seconds=seconds)
    assert [word for word in words if word not in event["message"]] == []


def stays(hands: Hands, job: str, reason: str, seconds: float) -> None:
    """It goes on for some time, and is not said again."""
    time.sleep(seconds)
    assert hands.condition(job, "Running") == ("False", reason)
    assert len([e for e in warnings(hands, job) if e["reason"] == reason]) == 1


def healed(hands: Hands, job: str, phase: str, count: int = 1) -> float:
    """All pods of the first attempt exist, soon after the cause is gone. Returns how soon, seconds."""
    begun = time.monotonic()
    wanted = {names.LABEL_PHASE: phase, names.LABEL_ATTEMPT: "1"}.items()
    wait_until(
        f"pods of {job}",
        lambda: sum(1 for p in hands.children("pods", job) if wanted <= p["metadata"]["labels"].items()) == count,
        seconds=HEALED,
    )
    seconds = time.monotonic() - begun
    print(f"{job}: pods {seconds:.1f} s after the cause was gone")
    return seconds


def complete(hands: Hands, job: str) -> None:
    """The job ends well, and nothing of it was a restart."""
    wait_until(f"end of {job}", lambda: hands.status(job).get("state") == "Complete", seconds=90)
    status = hands.status(job)
    assert (status["restarts"], status["attempts"]) == (0, {"prepare": 1, "train": 1, "export": 1})


@pytest.mark.fault(23)
def test_quota_midway(hands: Hands, plane: ControlPlane, operator: OperatorProcess, kubelets: nodes.Kubelets) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few", "namespace": hands.namespace}}
    plane.apply(quota | {"spec": {"hard": {"pods": "1"}}})
    wait_until("quota", lambda: (hands.get("resourcequotas", "few") or {}).get("status", {}).get("used"))
    # Prepare has one pod and fits; of the gang only half does.
    hands.apply("half", failurePolicy={"gangTimeoutSeconds": 15}, **GANG)
    wait_until("GangTimedOut", lambda: "GangTimedOut" in hands.events("half"), seconds=60)
    assert "QuotaExceeded" in hands.events("half")

    def training() -> list[Any]:
        return [p for p in hands.children("pods", "half") if p["metadata"]["labels"][names.LABEL_PHASE] == "train"]

    wait_until("nodes given back", lambda: not training(), seconds=15)
    (timed_out,) = [e for e in warnings(hands, "half") if e["reason"] == "GangTimedOut"][:1]
    assert "exceeded quota: few" in timed_out["message"]
    hands.delete("resourcequotas", "few")
    complete(hands, "half")
    assert [e["reason"] for e in warnings(hands, "half")].count("QuotaExceeded") == 1


@pytest.mark.fault(23)
def test_quota_of_a_single_pod(
    hands: Hands, plane: ControlPlane, operator: OperatorProcess, kubelets: nodes.Kubelets
) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": hands.namespace}}
    plane.apply(quota | {"spec": {"hard": {"pods": "0"}}})
    wait_until("quota", lambda: (hands.get("resourcequotas", "none") or {}).get("status", {}).get("used"))
    hands.apply("stopped", **ALONE)
    said(hands, "stopped", "QuotaExceeded", "exceeded quota: none", "limited: pods=0")
    # Long enough for the Job controller's own back-off to have become long.
    stays(hands, "stopped", "QuotaExceeded", 75)
    hands.delete("resourcequotas", "none")
    healed(hands, "stopped", "prepare")
    complete(hands, "stopped")


@pytest.mark.fault(24)
@pytest.mark.parametrize("resource", ["pods", "jobs"])
def test_webhook_denies(
    hands: Hands, plane: ControlPlane, operator: OperatorProcess, kubelets: nodes.Kubelets, resource: str
) -> None:
    with webhook(plane, hands.namespace, resource) as hook:
        hook.refusal = "images must be signed"
        hands.apply("denied", **ALONE)
        said(hands, "denied", "AdmissionDenied", "images must be signed", "guard.example.org")
        stays(hands, "denied", "AdmissionDenied", 20)
        hook.refusal = ""
        healed(hands, "denied", "prepare")
        complete(hands, "denied")
        assert hook.asked >= 3


@pytest.mark.fault(24)
@pytest.mark.parametrize("resource", ["pods", "jobs"])
def test_webhook_times_out(
    hands: Hands, plane: ControlPlane, operator: OperatorProcess, kubelets: nodes.Kubelets, resource: str
) -> None:
    with webhook(plane, hands.namespace, resource, timeout=2) as hook:
        hook.delay = 4.0
        hands.apply("slow", **ALONE)
        said(hands, "slow", "AdmissionDenied", "failed calling webhook", "guard.example.org")
        hook.delay = 0.0
        healed(hands, "slow", "prepare")
        complete(hands, "slow")


def test_missing_priority_class(
    hands: Hands, plane: ControlPlane, operator: OperatorProcess, kubelets: nodes.Kubelets
) -> None:
    hands.apply("ranked", pod={"priorityClassName": "made-later"}, **ALONE)
    said(hands, "ranked", "PriorityClassNotFound", "no PriorityClass with name made-later")
    ranked = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "made-later"}}
    plane.apply(ranked | {"value": 1000})
    healed(hands, "ranked", "prepare")
    complete(hands, "ranked")


@pytest.mark.fault(21)
@pytest.mark.parametrize("nodes_wanted", [1, 2])
def test_no_node_is_large_enough(
    hands: Hands, operator: OperatorProcess, kubelets: nodes.Kubelets, nodes_wanted: int
) -> None:
    size = {"nodes": nodes_wanted, "gpusPerNode": 4, "training": {"globalBatchSize": 8}}
    hands.apply("large", **size)
    said(hands, "large", "Unschedulable", "0/2 nodes are available", "Insufficient nvidia.com/gpu")
    for i in range(nodes_wanted):
        kubelets.add(f"large-{nodes_wanted}-{i}", gpus=4)
    complete(hands, "large")


@pytest.mark.fault(26)
def test_claim_that_nothing_is_bound_to(
    hands: Hands, plane: ControlPlane, operator: OperatorProcess, kubelets: nodes.Kubelets
) -> None:
    hands.apply("unbound", checkpoint={"volume": {"storageClassName": "made-later"}}, **ALONE)
    wait_until("condition", lambda: hands.condition("unbound", "Running") == ("False", "VolumePending"), seconds=10)
    # An ordinary start looks the same; it's said when it lasts.
    assert warnings(hands, "unbound") == []
    said(hands, "unbound", "VolumePending", seconds=45)
    volume = {
        "capacity": {"storage": "1Ti"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "made-later",
        "hostPath": {"path": "/none"},
    }  # fmt: skip
    plane.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "later"}, "spec": volume})
    complete(hands, "unbound")


def bound(hands: Hands, plane: ControlPlane, job: str) -> dict[str, Any]:
    """The pod of prepare, on a node whose kubelet is the test."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"by-hand-{job}"}}
    plane.apply(node)
    (pod,) = hands.pods(job, "prepare", 1, 1)
    name = pod["metadata"]["name"]
    target = {"apiVersion": "v1", "kind": "Node", "name": node["metadata"]["name"]}  # type: ignore[index]
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
    answer = hands.requests.send("POST", f"{hands.path('pods', name)}/binding", binding)
    assert answer.accepted, answer.message
    return pod


def kubelet_says(hands: Hands, pod: dict[str, Any], type_: str, reason: str, message: str) -> None:
    now = nodes.now()
    about = {
        "kind": "Pod",
        "namespace": hands.namespace,
        "name": pod["metadata"]["name"],
        "uid": pod["metadata"]["uid"],
    }
    event = {
        "apiVersion": "v1", "kind": "Event", "metadata": {"generateName": "by-kubelet-"}, "involvedObject": about,
        "type": type_, "reason": reason, "message": message, "source": {"component": "kubelet"},
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    }  # fmt: skip
    answer = hands.requests.send("POST", hands.path("events"), event)
    assert answer.accepted, answer.message


@pytest.mark.fault(22)
def test_missing_secret(hands: Hands, plane: ControlPlane, operator: OperatorProcess) -> None:
    hands.apply("gated", model={"name": "org/model", "tokenSecretRef": {"name": "hub"}})
    pod = bound(hands, plane, "gated")
    kubelet_says(hands, pod, "Normal", "Scheduled", "Successfully assigned")
    kubelet_says(
        hands, pod, "Warning", "FailedMount", 'MountVolume.SetUp failed for volume "token" : secret "hub" not found'
    )
    said(hands, "gated", "SecretNotFound", 'secret "hub" not found')
    # The Secret is there now, and the kubelet goes on.
    kubelet_says(hands, pod, "Normal", "Pulling", "Pulling image")
    wait_until("no complaint", lambda: hands.condition("gated", "Running")[1] == "PodsPending", seconds=SAID)
    hands.start(pod)
    wait_until("running", lambda: hands.condition("gated", "Running")[0] == "True")
    status = hands.status("gated")
    assert (status["restarts"], status["attempts"]["prepare"]) == (0, 1)
    assert [e["reason"] for e in warnings(hands, "gated")] == ["SecretNotFound"]


@pytest.mark.fault(20)
def test_image_that_cannot_be_pulled(hands: Hands, plane: ControlPlane, operator: OperatorProcess) -> None:
    hands.apply("misnamed")
    pod = bound(hands, plane, "misnamed")
    path = f"{pod['metadata']['name']}/status"
    for reason in ("ErrImagePull", "ImagePullBackOff", "ErrImagePull"):
        waiting = {"waiting": {"reason": reason, "message": "manifest unknown"}}
        container = {
            "name": "trainer",
            "image": "t",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": waiting,
        }
        hands.patch("pods", path, {"status": {"containerStatuses": [container]}})
        said(hands, "misnamed", "ImagePullFailed", "manifest unknown")
    hands.start(pod)
    wait_until("running", lambda: hands.condition("misnamed", "Running")[0] == "True")
    assert hands.status("misnamed")["restarts"] == 0


@pytest.mark.fault(40)
@pytest.mark.parametrize("rules", [[], [{"exitCodes": [70], "action": "RestartUncounted"}]], ids=["counted", "by rule"])
def test_crash_loop_without_progress_ends(hands: Hands, operator: OperatorProcess, rules: list[dict[str, Any]]) -> None:
    hands.apply("looping", failurePolicy={"maxRestarts": 100, "backoffSeconds": 1, "rules": rules}, **ALONE)
    (pod,) = hands.pods("looping", "prepare", 1, 1)
    hands.end(pod, 0, last_words(0, "prepare", 1))
    for attempt in range(1, 5):
        (pod,) = hands.pods("looping", "train", attempt, 1)
        hands.start(pod)
        wait_until("training", lambda: hands.status("looping").get("state") == "Training")
        progress = {"phase": "train", "attempt": attempt, "step": 7}
        hands.end(pod, 70, last_words(70, "train", attempt, message="CUDA error", progress=progress))
    wait_until("end", lambda: hands.status("looping").get("state") == "Failed")
    assert hands.condition("looping", "Failed") == ("True", "NoProgress")
    status = hands.status("looping")
    assert "3 restarts did not get beyond step 7" in status["message"]
    assert (status["restarts"], status["countedRestarts"]) == (3, 0 if rules else 3)
    shown = operator.metrics()
    assert 'dpojob_restarts_total{dpojob="looping"' in shown
    assert "dpojob_recovery_seconds_count 3.0" in shown
    # Prepare's end and four failures.
    assert "dpojob_detection_seconds_count 5.0" in shown
