"""What guards a job's pods, and how they are placed, on a real API server with its controllers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.guards import build_guards
from dpo_operator.builders.networks import Networks
from dpo_operator.builders.ports import ports_of
from tests.apiserver.client import Requests
from tests.apiserver.hands import Hands, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.cluster.rig.control_plane import ControlPlane

pytestmark = pytest.mark.apiserver

SPACE = "guarded"


@pytest.fixture
def hands(control_plane: ControlPlane, dpojobs: Requests) -> Iterator[Hands]:
    """A gang that a test leaves without nodes would have its turn for a minute, so no job outlives its test."""
    control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
    yield Hands(dpojobs, SPACE)
    control_plane.kubectl("delete", names.PLURAL, "--all", "-n", SPACE)


@pytest.fixture(scope="module")
def operator(
    control_plane: ControlPlane, dpojobs: Requests, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    process = OperatorProcess(control_plane.kubeconfig, SPACE, tmp_path_factory.mktemp("guards") / "operator.log")
    process.settings = {"DPO_METRICS_NAMESPACES": "dpo-system", "DPO_ALLOW": '{"hostNetwork": true}'}
    process.settings["DPO_NETWORK"] = '{"open": ["10.1.0.0/16", "100.64.0.0/10"], "openNamespaces": ["minio"]}'
    with running(process):
        yield process


def training(hands: Hands, name: str, **spec: Any) -> list[str]:
    """A job that trains; names of its pods."""
    hands.apply(name, **spec)
    hands.run_phase(name, "prepare")
    pods = hands.pods(name, "train", 1, 2)
    for pod in pods:
        hands.start(pod, "")
    wait_until("training", lambda: hands.status(name).get("state") == "Training")
    return [pod["metadata"]["name"] for pod in pods]


def evict(hands: Hands, pod: str) -> int:
    """HTTP status of the request that kubectl drain makes."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": SPACE}}
    return hands.requests.send("POST", f"{hands.path('pods', pod)}/eviction", body).status


def allowed(hands: Hands, job: str) -> int:
    """Disruptions that the budget allows now, -1 before its controller has counted."""
    status = (hands.get("poddisruptionbudgets", f"{job}-train") or {}).get("status", {})
    return int(status["disruptionsAllowed"]) if status.get("expectedPods") == 2 else -1


@pytest.mark.fault(16)
def test_a_drain_takes_one_pod_at_a_time(hands: Hands, operator: OperatorProcess) -> None:
    first, second = training(hands, "drained")
    wait_until("budget", lambda: allowed(hands, "drained") == 1)
    assert evict(hands, first) == 201
    assert evict(hands, second) == 429
    # The gang goes on as a whole, and the eviction counts for nothing.
    wait_until("restart", lambda: hands.status("drained").get("restarts") == 1)
    assert hands.status("drained")["countedRestarts"] == 0


@pytest.mark.fault(16)
def test_a_job_that_refuses_evictions_is_not_drained(hands: Hands, operator: OperatorProcess) -> None:
    pods = training(hands, "kept", pod={"evictions": "Refuse"})
    wait_until("budget", lambda: allowed(hands, "kept") == 0)
    assert [evict(hands, pod) for pod in pods] == [429, 429]
    assert hands.status("kept")["state"] == "Training"


def test_the_api_server_keeps_every_word_of_the_guards(hands: Hands, operator: OperatorProcess) -> None:
    """A field that it does not know would be dropped without a word."""
    wandb = {"project": "p", "mode": "online", "apiKeySecretRef": {"name": "k"}}
    raw = hands.apply("worded", tracking={"wandb": wandb})
    hands.run_phase("worded", "prepare")
    hands.pods("worded", "train", 1, 2)
    job = DPOJob.model_validate({key: raw[key] for key in ("apiVersion", "kind", "metadata", "spec")})
    kinds = {"PodDisruptionBudget": "poddisruptionbudgets", "NetworkPolicy": "networkpolicies"}
    networks = Networks(
        metrics_namespaces=("dpo-system",), open=("10.1.0.0/16", "100.64.0.0/10"), open_namespaces=("minio",)
    )
    guards = [guard for phase in ("prepare", "train") for guard in build_guards(job, phase, networks)]
    assert len(guards) == 3
    for guard in guards:
        stored = hands.get(kinds[guard["kind"]], guard["metadata"]["name"])
        assert stored is not None
        assert stored["spec"] == guard["spec"]


def test_guards_go_with_their_job(hands: Hands, operator: OperatorProcess) -> None:
    training(hands, "short")
    assert [len(hands.children(kind, "short")) for kind in ("poddisruptionbudgets", "networkpolicies")] == [1, 2]
    hands.delete("dpojobs", "short")
    for kind in ("poddisruptionbudgets", "networkpolicies"):
        wait_until(f"no {kind}", lambda kind=kind: not hands.children(kind, "short"))


def test_a_new_operator_lets_other_namespaces_scrape(
    hands: Hands, operator: OperatorProcess, control_plane: ControlPlane, tmp_path: Path
) -> None:
    training(hands, "scraped")
    operator.stop()
    operator.settings = {"DPO_METRICS_NAMESPACES": "dpo-system,prometheus"}
    operator.start()

    def namespaces() -> list[str]:
        spec = (hands.get("networkpolicies", "scraped-train") or {})["spec"]
        (source,) = spec["ingress"][1]["from"]
        return list(source["namespaceSelector"]["matchExpressions"][0]["values"])

    wait_until("change", lambda: namespaces() == ["dpo-system", "prometheus"])
    assert hands.status("scraped")["restarts"] == 0


def test_fabrics_and_racks_reach_the_pods(hands: Hands, operator: OperatorProcess) -> None:
    network = {"hostNetwork": True, "rdmaResource": "rdma/ib", "interface": "ib0"}
    topology = {"packBy": "example.org/rack", "spreadBy": "topology.kubernetes.io/zone", "required": True}
    raw = hands.apply("fabric", pod={"network": network, "topology": topology})
    hands.run_phase("fabric", "prepare")
    pod = hands.pods("fabric", "train", 1, 2)[0]["spec"]
    assert (pod["hostNetwork"], pod["dnsPolicy"], pod["subdomain"]) == (True, "ClusterFirstWithHostNet", "fabric-train")
    job = DPOJob.model_validate({key: raw[key] for key in ("apiVersion", "kind", "metadata", "spec")})
    (container,) = pod["containers"]
    # Kubernetes makes ports of the host of them, by which its scheduler keeps pods apart.
    assert {(p["containerPort"], p["hostPort"]) for p in container["ports"]} == {(n, n) for n in ports_of(job)}
    assert container["resources"]["limits"]["rdma/ib"] == "1"
    assert set(pod["affinity"]) == {"podAffinity", "podAntiAffinity"}
    assert pod["topologySpreadConstraints"][0]["whenUnsatisfiable"] == "DoNotSchedule"
    assert pod["hostname"] == names.child_job_name("fabric", "train", 1) + "-0"
