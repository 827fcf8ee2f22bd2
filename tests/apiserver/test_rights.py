"""The operator under the chart's own rights, through all that can happen to a job: it needs each of them, and no other."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_operator.generate import crd
from tests.apiserver.client import Requests, wait_until_served
from tests.apiserver.hands import Hands, bind, make_storage_class, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.cluster.rig import fixture
from tests.cluster.rig.control_plane import ControlPlane
from tests.contract.chart import NAMESPACE, render

pytestmark = pytest.mark.apiserver

RELEASE = "dpo-operator"
USER = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
TEAM = "team"
INSTALLED = ("ServiceAccount", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
# What `kubectl auth can-i --list` shows must fit on a screen.
MOST_LINES = 25

Right = tuple[str, str, str]


@dataclass
class Life:
    """What a step of the scenario acts on."""

    hands: Hands
    operator: OperatorProcess
    plane: ControlPlane


@pytest.fixture(scope="module", params=[(), (f"watchNamespaces={{{TEAM}}}",)], ids=["cluster-wide", "one namespace"])
def settings(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Of the chart: with a ClusterRole, or with a Role alone."""
    return tuple(request.param)


@pytest.fixture(scope="module")
def plane(settings: tuple[str, ...]) -> Iterator[ControlPlane]:
    """An API with an audit log, and on it what the chart installs besides the operator's pod."""
    with fixture.control_plane("rights", audit=True) as plane:
        for name in (NAMESPACE, TEAM):
            plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
            plane.wait_for_service_account(name)
        plane.apply(*(o for o in render(*settings).objects if o["kind"] in INSTALLED))
        wait_until_served(plane, crd.NAME)
        yield plane


@pytest.fixture(scope="module")
def life(plane: ControlPlane, settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """The operator as its ServiceAccount, with the chart's environment."""
    folder: Path = tmp_path_factory.mktemp("rights")
    token = plane.kubectl("create", "token", RELEASE, "-n", NAMESPACE, "--duration=1h").strip()
    kubeconfig = yaml.safe_load(plane.kubeconfig.read_text(encoding="utf-8"))
    kubeconfig["users"][0]["user"] = {"token": token}
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(kubeconfig), encoding="utf-8")
    process = OperatorProcess(file, "", folder / "operator.log")
    own = {"DPO_METRICS_PORT", "DPO_HEALTH_PORT", "DPO_RESYNC_SECONDS", "DPO_PROGRESS_SECONDS", "DPO_LOG_FORMAT"}
    # A priority that nobody has made, so that Kubernetes refuses pods.
    chart = render(*settings, "allow.priorityClasses={nobody-made-it}")
    process.settings = {k: v for k, v in chart.environment.items() if k not in own}
    # What the pod gets from its fields: it takes the Lease.
    process.settings |= {"POD_NAME": "operator-0", "POD_NAMESPACE": NAMESPACE}
    with running(process):
        yield Life(Hands(Requests(plane), TEAM), process, plane)


def a_whole_life(life: Life) -> None:
    """Children are made, a gang gets its turn, progress and events are written."""
    life.hands.apply("whole")
    life.hands.run_phase("whole", "prepare")
    life.hands.run_all("whole")


def a_rank_fails(life: Life) -> None:
    """Its peer is stopped: a pod is deleted. Before that, somebody changes what guards the ranks."""
    life.hands.apply("broken")
    life.hands.run_phase("broken", "prepare")
    pods = life.hands.pods("broken", "train", 1, 2)
    for pod in pods:
        life.hands.start(pod)
    wait_until("training", lambda: life.hands.status("broken").get("state") == "Training")
    guards_that_somebody_changed(life, "broken")
    life.hands.end(pods[0], 137)
    wait_until("restart", lambda: life.hands.status("broken").get("restarts") == 1)


def suspended_and_resumed(life: Life) -> None:
    """Jobs are deleted."""
    life.hands.apply("paused")
    life.hands.pods("paused", "prepare", 1, 1)
    life.hands.patch("dpojobs", "paused", {"spec": {"suspend": True}})
    wait_until("no job", lambda: not life.hands.children("jobs", "paused"))
    life.hands.patch("dpojobs", "paused", {"spec": {"suspend": False}})
    life.hands.pods("paused", "prepare", 2, 1)
    wait_until("note of it", lambda: life.hands.status("paused").get("activeJob", {}).get("name") == "paused-prepare-2")
    # Pods that have lost their Job: nobody but the operator deletes them.
    life.hands.delete("jobs", "paused-prepare-2", propagationPolicy="Orphan")
    life.hands.pods("paused", "prepare", 3, 1)


def guards_that_somebody_changed(life: Life, job: str) -> None:
    """An operator that starts sees that they are not its own any more: they are patched."""
    life.operator.kill()
    guards = (
        ("poddisruptionbudgets", f"{job}-train", {"minAvailable": 0}),
        ("networkpolicies", f"{job}-train", {"egress": [{}]}),
    )
    before = {kind: spec_of(life, kind, name) for kind, name, _ in guards}
    for kind, name, changed in guards:
        life.hands.patch(kind, name, {"spec": changed})
        assert spec_of(life, kind, name) != before[kind]
    life.operator.start()
    for kind, name, _ in guards:
        wait_until(f"repair of {name}", lambda kind=kind, name=name: spec_of(life, kind, name) == before[kind])


def spec_of(life: Life, kind: str, name: str) -> Any:
    return (life.hands.get(kind, name) or {}).get("spec")


def a_volume_that_grows(life: Life) -> None:
    """More is asked for on the job's claim."""
    make_storage_class(life.plane, "growing", grows=True)
    volume = {"volume": {"size": "1Gi", "storageClassName": "growing"}}
    life.hands.apply("grows", nodes=1, checkpoint=volume)
    bind(life.plane, life.hands, "grows-work", size="1Gi", kind="growing")
    life.hands.pods("grows", "prepare", 1, 1)
    life.hands.patch("dpojobs", "grows", {"spec": {"checkpoint": {"volume": {"size": "2Gi"}}}})
    wait_until("request", lambda: life.hands.condition("grows", "VolumeTooSmall") == ("True", "ExpansionRequested"))


def a_name_that_is_taken(life: Life) -> None:
    """A Job of that name is somebody else's: it's looked at, and left alone."""
    container = {"name": "c", "image": "x"}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "taken-prepare-1"},
        "spec": {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }
    assert life.hands.requests.send("POST", life.hands.path("jobs"), job).accepted
    life.hands.apply("taken")
    wait_until("conflict", lambda: life.hands.condition("taken", "Running") == ("False", "RequestRefused"))
    assert "does not belong to this job" in life.hands.status("taken")["message"]


def pods_that_are_refused(life: Life) -> None:
    """Kubernetes says why in events alone: they are read."""
    life.hands.apply("unranked", pod={"priorityClassName": "nobody-made-it"})
    wait_until("reason", lambda: life.hands.condition("unranked", "Running") == ("False", "PriorityClassNotFound"))


def time_to_live(life: Life) -> None:
    """A finished DPOJob is deleted."""
    life.hands.apply("brief", training={"zeroStage": 2}, gpusPerNode=1, ttlSecondsAfterFinished=0)
    wait_until("deletion", lambda: life.hands.get("dpojobs", "brief") is None)


# A right that is added to the chart needs a step here that uses it.
SCENARIO: tuple[Callable[[Life], None], ...] = (
    a_whole_life,
    a_rank_fails,
    suspended_and_resumed,
    a_volume_that_grows,
    a_name_that_is_taken,
    pods_that_are_refused,
    time_to_live,
)


def granted(settings: tuple[str, ...]) -> set[Right]:
    """(group, resource, verb) that the chart gives to the operator."""
    chart = render(*settings)
    rules = (
        chart.one("Role" if settings else "ClusterRole", RELEASE)["rules"]
        + chart.one("Role", f"{RELEASE}-lease")["rules"]
    )
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def requests_of_the_operator(plane: ControlPlane) -> tuple[set[Right], list[str]]:
    """Rights that its requests made use of, and the requests that were forbidden."""
    used, forbidden = set(), []
    for line in plane.audit_log.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        target = event.get("objectRef")
        if event["user"]["username"] != USER or not target or event["stage"] == "RequestReceived":
            continue
        if event.get("responseStatus", {}).get("code") == 403 and "forbidden" in event["responseStatus"].get(
            "message", ""
        ):
            forbidden.append(f"{event['verb']} {event['requestURI']}")
            continue
        resource = "/".join(part for part in (target.get("resource"), target.get("subresource")) if part)
        used.add((target.get("apiGroup", ""), resource, event["verb"]))
    return used, forbidden


def test_every_right_is_used_and_none_is_missed(plane: ControlPlane, life: Life, settings: tuple[str, ...]) -> None:
    for step in SCENARIO:
        step(life)
    with suppress(AssertionError):  # what is missing is told below
        # The log is written after the answer, and a restarted job's old pods are dealt with in their own time.
        wait_until("use of all", lambda: requests_of_the_operator(plane)[0] == granted(settings), 20)
    used, forbidden = requests_of_the_operator(plane)
    assert forbidden == [], life.operator.log.read_text(errors="replace")[-4000:]
    assert used == granted(settings)


def test_a_queue_that_the_chart_was_installed_without_is_told_of(life: Life, settings: tuple[str, ...]) -> None:
    life.hands.apply("queued", queue={"kind": "Volcano"})
    wait_until("reason", lambda: life.hands.condition("queued", "Running") == ("False", "RequestRefused"))
    assert "set queues.volcano.enabled" in life.hands.status("queued")["message"]
    # The event is written after the status.
    wait_until("event", lambda: "RequestRefused" in life.hands.events("queued"))
    assert life.hands.events("queued").count("RequestRefused") == 1


def test_the_rights_fit_on_a_screen(plane: ControlPlane, settings: tuple[str, ...]) -> None:
    shown = plane.kubectl("auth", "can-i", "--list", f"--as={USER}", "-n", TEAM).splitlines()
    everybodys = plane.kubectl("auth", "can-i", "--list", "--as=system:serviceaccount:other:other", "-n", TEAM)
    ours = [line for line in shown if line not in everybodys.splitlines()]
    assert 5 < len(ours) <= MOST_LINES
    assert not any(word in line for line in ours for word in ("*", "secrets", "exec", "nodes"))
    if settings:
        # Where it does not serve, it has no right but to the Lease.
        elsewhere = plane.kubectl("auth", "can-i", "--list", f"--as={USER}", "-n", NAMESPACE).splitlines()
        rest = [line for line in elsewhere if line not in everybodys.splitlines()]
        assert {line.split()[0] for line in rest} == {"leases.coordination.k8s.io"}
