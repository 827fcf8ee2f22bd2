"""Gangs that fit only alone: a real scheduler, real controllers, and the operator that lets one be placed at a time."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_operator.generate import crd
from tests.apiserver import nodes
from tests.apiserver.client import Requests, wait_until_served
from tests.apiserver.hands import Hands, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.apiserver.podwatch import watching
from tests.cluster.rig import fixture
from tests.cluster.rig.control_plane import ControlPlane

pytestmark = [pytest.mark.apiserver, pytest.mark.fault(19)]

ONE_GPU = {"nodes": 2, "gpusPerNode": 1}


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane with a scheduler, which the other tests of this tier do without."""
    with fixture.control_plane("gangs", scheduler=True) as plane:
        plane.apply(crd.crd())
        wait_until_served(plane, crd.NAME)
        nodes.volumes(plane, 30)
        yield plane


@pytest.fixture
def hands(plane: ControlPlane, request: pytest.FixtureRequest) -> Hands:
    """A namespace for each test."""
    name = request.node.name.partition("[")[0].removeprefix("test_").replace("_", "-")[:50].strip("-")
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    plane.wait_for_service_account(name)
    return Hands(Requests(plane), name)


@pytest.fixture
def operator(hands: Hands, plane: ControlPlane, tmp_path: Path) -> Iterator[OperatorProcess]:
    process = OperatorProcess(plane.kubeconfig, hands.namespace, tmp_path / "operator.log")
    with running(process):
        yield process
    # Nothing that it did went wrong: a log with errors is no success.
    assert "Traceback" not in process.log.read_text()


def complete(hands: Hands, job: str, seconds: float = 90) -> None:
    wait_until(f"end of {job}", lambda: hands.status(job).get("state") == "Complete", seconds=seconds)


def test_two_jobs_that_fit_only_alone_run_one_after_the_other(
    hands: Hands, plane: ControlPlane, operator: OperatorProcess
) -> None:
    with nodes.kubelets(plane, hands) as kubelets, watching(plane, hands) as seen:
        kubelets.add("gpu-1")
        kubelets.add("gpu-2")
        for name in ("one", "two"):
            hands.apply(name, **ONE_GPU)
        for name in ("one", "two"):
            complete(hands, name)
    assert seen.ever() == {"one", "two"}
    assert seen.most_at_once() == 1
    assert max(count for _, gang in seen.gangs for count in gang.values()) == 2
    for name in ("one", "two"):
        status = hands.status(name)
        assert (status["restarts"], status["attempts"]["train"]) == (0, 1)
        assert "placementWait" not in status


def test_three_jobs_take_turns(hands: Hands, plane: ControlPlane, operator: OperatorProcess) -> None:
    jobs = ("one", "two", "three")
    with nodes.kubelets(plane, hands) as kubelets, watching(plane, hands) as seen:
        kubelets.add("gpu-1")
        kubelets.add("gpu-2")
        for name in jobs:
            hands.apply(name, **ONE_GPU)
        for name in jobs:
            complete(hands, name, seconds=120)
    assert seen.ever() == set(jobs)
    assert seen.most_at_once() == 1
    assert all(hands.status(name)["restarts"] == 0 for name in jobs)


def test_a_gang_without_all_of_its_nodes_gives_them_back(
    hands: Hands, plane: ControlPlane, operator: OperatorProcess
) -> None:
    with nodes.kubelets(plane, hands) as kubelets, watching(plane, hands) as seen:
        kubelets.add("gpu-1")
        hands.apply("large", **ONE_GPU, failurePolicy={"gangTimeoutSeconds": 10})
        begun = wait_until("half a gang", lambda: next((t for t, gang in seen.gangs if gang), 0))
        wait_until("time-out", lambda: hands.condition("large", "Running") == ("False", "GangTimedOut"))
        assert 8 < time.monotonic() - begun < 20
        wait_until("free node", lambda: not seen.gangs[-1][1])
        status = hands.status("large")
        # The scheduler's own words, and how many had a node.
        assert "1 of 2 pods had a node" in status["message"]
        assert "Insufficient nvidia.com/gpu" in status["message"]
        assert status["placementWait"]["timeouts"] == 1
        assert "GangTimedOut" in hands.events("large")
        # What it gave back is really free: a job of one pod runs meanwhile.
        hands.apply("small", nodes=1, gpusPerNode=1)
        complete(hands, "small")
        kubelets.add("gpu-2")
        complete(hands, "large")
    status = hands.status("large")
    assert (status["restarts"], status["countedRestarts"], status["attempts"]["train"]) == (0, 0, 1)
    assert "placementWait" not in status


def test_the_turn_of_a_deleted_or_suspended_job_goes_to_the_next(
    hands: Hands, plane: ControlPlane, operator: OperatorProcess
) -> None:
    with nodes.kubelets(plane, hands) as kubelets, watching(plane, hands) as seen:
        kubelets.add("gpu-1")
        for name in ("gone", "paused"):
            hands.apply(name, **ONE_GPU)
            wait_until(f"turn of {name}", lambda name=name: name in seen.ever())
            # It has one node of two, and the turn.
            assert hands.condition(name, "Running")[0] == "False"
            if name == "gone":
                hands.apply("next", **ONE_GPU)
                wait_until("queue", lambda: hands.condition("next", "Running") == ("False", "Queued"))
                hands.delete("dpojobs", "gone")
                wait_until("turn of next", lambda: "next" in seen.ever())
                hands.delete("dpojobs", "next")
                wait_until("free node", lambda: not seen.gangs[-1][1])
        hands.apply("last", **ONE_GPU)
        wait_until("queue", lambda: hands.condition("last", "Running") == ("False", "Queued"))
        hands.patch("dpojobs", "paused", {"spec": {"suspend": True}})
        # A second node before that would make its gang whole.
        wait_until("turn of last", lambda: "last" in seen.ever())
        kubelets.add("gpu-2")
        complete(hands, "last")
        assert hands.status("paused")["state"] == "Suspended"
        hands.patch("dpojobs", "paused", {"spec": {"suspend": False}})
        complete(hands, "paused")
    assert seen.most_at_once() == 1


def test_an_operator_that_was_killed_knows_whose_turn_it_is(
    hands: Hands, plane: ControlPlane, operator: OperatorProcess
) -> None:
    with nodes.kubelets(plane, hands) as kubelets, watching(plane, hands) as seen:
        kubelets.add("gpu-1")
        # No operator of ours will ever look after this one: nobody waits for that.
        hands.apply("foreign", **ONE_GPU, managedBy="example.org/somebody")
        hands.apply("holder", **ONE_GPU)
        wait_until("half a gang", lambda: "holder" in seen.ever())
        hands.apply("waiting", **ONE_GPU)
        wait_until("queue", lambda: hands.condition("waiting", "Running") == ("False", "Queued"))
        for _ in range(3):
            operator.kill()
            operator.start()
            time.sleep(2)
            assert seen.ever() == {"holder"}
        kubelets.add("gpu-2")
        complete(hands, "holder", seconds=45)
        complete(hands, "waiting", seconds=45)
    assert seen.order() == ["holder", "waiting"]
    assert seen.most_at_once() == 1


@pytest.mark.fault(24)
def test_a_gang_that_may_not_begin_keeps_nobody_waiting(
    hands: Hands, plane: ControlPlane, operator: OperatorProcess
) -> None:
    """A policy forbids to resume one job's Job; it's the older one, so its turn comes first each time."""
    deny(plane, hands.namespace, "barred-train-1")
    with nodes.kubelets(plane, hands) as kubelets, watching(plane, hands) as seen:
        kubelets.add("gpu-1")
        kubelets.add("gpu-2")
        hands.apply("barred", **ONE_GPU)
        wait_until("reason", lambda: hands.condition("barred", "Running") == ("False", "AdmissionDenied"), 120)
        assert "not today" in hands.status("barred")["message"]
        hands.apply("free", **ONE_GPU)
        complete(hands, "free")
        assert seen.ever() == {"free"}
        assert hands.events("barred").count("AdmissionDenied") == 1
        plane.kubectl("delete", "validatingadmissionpolicybinding", "barred")
        complete(hands, "barred")
    assert hands.status("barred")["restarts"] == 0


def deny(plane: ControlPlane, namespace: str, job: str) -> None:
    """Let nobody resume a Job of this name."""
    group = {"apiVersion": "admissionregistration.k8s.io/v1"}
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"], "operations": ["UPDATE"]}
    only = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}, "resourceRules": [rule]}
    expression = f"object.metadata.name != '{job}' || object.spec.suspend || !oldObject.spec.suspend"
    validation = {"expression": expression, "message": "not today"}
    policy = {"matchConstraints": only, "validations": [validation]}
    plane.apply(
        group | {"kind": "ValidatingAdmissionPolicy", "metadata": {"name": "barred"}, "spec": policy},
        group
        | {
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": "barred"},
            "spec": {"policyName": "barred", "validationActions": ["Deny"]},
        },
    )


def test_a_job_that_somebody_else_suspends_waits_and_counts_nothing(
    hands: Hands, plane: ControlPlane, operator: OperatorProcess
) -> None:
    with nodes.kubelets(plane, hands, train=False) as kubelets, watching(plane, hands) as seen:
        kubelets.add("gpu-1")
        kubelets.add("gpu-2")
        hands.apply("preempted", **ONE_GPU)
        wait_until("training", lambda: hands.status("preempted").get("state") == "Training")
        hands.patch("jobs", "preempted-train-1", {"spec": {"suspend": True}})
        wait_until("next attempt", lambda: hands.status("preempted")["attempts"]["train"] == 2)
        wait_until("training", lambda: hands.status("preempted").get("state") == "Training")
        kubelets.train = True
        complete(hands, "preempted")
    status = hands.status("preempted")
    assert (status["restarts"], status.get("restartHistory", [])) == (0, [])
    assert "Queued" in hands.events("preempted")
    assert max(len(gang) for _, gang in seen.gangs) == 1


def test_a_gang_that_loses_a_node_while_it_is_placed_waits_for_another(
    hands: Hands, plane: ControlPlane, operator: OperatorProcess
) -> None:
    with nodes.kubelets(plane, hands) as kubelets, watching(plane, hands) as seen:
        kubelets.add("gpu-1")
        hands.apply("unlucky", **ONE_GPU, failurePolicy={"gangTimeoutSeconds": 10, "maxRestarts": 0})
        wait_until("half a gang", lambda: seen.ever() == {"unlucky"})
        # The only node goes, and its pod with it: the garbage collector of pods takes it away.
        kubelets.remove("gpu-1")
        kubelets.add("gpu-2")
        kubelets.add("gpu-3")
        complete(hands, "unlucky", seconds=180)
    assert hands.status("unlucky")["countedRestarts"] == 0


@pytest.mark.campaign  # a minute of waiting
def test_yields_sooner_while_others_wait(hands: Hands, plane: ControlPlane, operator: OperatorProcess) -> None:
    """Three nodes can never be had; two can, as soon as the larger gang stops holding one of them."""
    with nodes.kubelets(plane, hands) as kubelets, watching(plane, hands) as seen:
        kubelets.add("gpu-1")
        kubelets.add("gpu-2")
        three = ONE_GPU | {"nodes": 3, "training": {"globalBatchSize": 3}}
        hands.apply("too-large", **three)
        wait_until("part of a gang", lambda: seen.ever() == {"too-large"})
        begun = time.monotonic()
        hands.apply("fits", **ONE_GPU)
        complete(hands, "fits", seconds=120)
        assert time.monotonic() - begun < 90
        assert hands.condition("too-large", "Running")[0] == "False"
        assert "GangTimedOut" in hands.events("too-large")
    assert seen.most_at_once() == 1
