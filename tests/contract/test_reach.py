"""Who reaches whom, by the NetworkPolicies of the operator and of the chart, in a model of a plugin that enforces them."""

from typing import Any

import pytest

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.guards import build_guards
from dpo_operator.builders.networks import CLOSED, METADATA, Networks
from dpo_operator.builders.pod import TrainerImage, build_pod_template
from tests.contract.chart import NAMESPACE, render
from tests.networks import Place, reaches

pytestmark = pytest.mark.contract

ONLINE = {"wandb": {"project": "p", "mode": "online", "apiKeySecretRef": {"name": "k"}}}
TEAM = "team-a"


def a_job(uid: str, namespace: str = TEAM, **spec: Any) -> DPOJob:
    least = {"model": {"name": "org/model"}, "data": {"train": {"source": "org/pairs"}}, "nodes": 2}
    metadata = {"name": f"job-{uid}", "namespace": namespace, "uid": uid}
    return DPOJob.model_validate(
        {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": least | spec}
    )


def pod_of(job: DPOJob, phase: names.PodKind, address: str) -> Place:
    template = build_pod_template(job, phase, 1, TrainerImage("t:1"))
    return Place(address, job.metadata.namespace, template["metadata"]["labels"])


IDENTIFIED = a_job("5", pod={"serviceAccountName": "reader"})
PUSHING = a_job("6", export={"push": {"to": "s3://bucket/out"}})
MIRRORED = a_job("7", checkpoint={"mirror": {"to": "s3://bucket/run"}}, pod={"serviceAccountName": "reader"})


def judged(**endpoint: Any) -> dict[str, Any]:
    return {"judge": {"type": "endpoint", "endpoint": {"url": "https://judge.example/v1", "model": "m"} | endpoint}}


# A judge on the internet, one in another team's namespace, and a rule.
ASKING = a_job("8", iterative=judged())
IN_CLUSTER = {"namespace": "team-b", "podLabels": {"app": "x"}, "port": 8080}
ASKING_INSIDE = a_job("9", iterative=judged(url="http://judge.team-b.svc:80/v1", allowTo=IN_CLUSTER))
RULED = a_job("10", iterative={"judge": {"type": "builtin", "builtin": {"name": "length", "tokens": 5}}})
JOB, WANDB = a_job("1"), a_job("2", tracking=ONLINE)
SAME_TEAM, OTHER_TEAM = a_job("3"), a_job("4", "team-b")
PODS = {
    "prepare": pod_of(JOB, "prepare", "10.1.0.1"),
    "prepare with an identity": pod_of(IDENTIFIED, "prepare", "10.1.0.8"),
    "rank with an identity": pod_of(IDENTIFIED, "train", "10.1.0.9"),
    "rank": pod_of(JOB, "train", "10.1.0.2"),
    "rank with wandb online": pod_of(WANDB, "train", "10.1.0.3"),
    "export": pod_of(JOB, "export", "10.1.0.4"),
    "export that is pushed": pod_of(PUSHING, "export", "10.1.0.16"),
    "rank of a job that pushes": pod_of(PUSHING, "train", "10.1.0.17"),
    "copy to a mirror": pod_of(MIRRORED, "mirror", "10.1.0.18"),
    "rank of a job that is mirrored": pod_of(MIRRORED, "train", "10.1.0.19"),
    "generator": pod_of(ASKING, "generate", "10.1.0.20"),
    "judge at an endpoint": pod_of(ASKING, "judge", "10.1.0.21"),
    "judge in the cluster": pod_of(ASKING_INSIDE, "judge", "10.1.0.22"),
    "judge by a rule": pod_of(RULED, "judge", "10.1.0.23"),
    "operator": Place(
        "10.1.0.5",
        NAMESPACE,
        render().one("Deployment")["spec"]["template"]["metadata"]["labels"],
        {"metrics": 9400, "health": 8080},
    ),
    "a stranger": Place("10.1.0.6", "team-b", {"app": "anything"}),
    "prometheus": Place("10.1.0.7", "prometheus", {"app": "prometheus"}),
}  # fmt: skip

# What is reached, by address and port.
DNS = Place("10.1.9.1", "kube-system", {"k8s-app": "kube-dns"})
MINIO = Place("10.1.9.2", "minio", {"app": "minio"})
TARGETS: dict[str, tuple[Place, int]] = {
    "hub": (Place("203.0.113.10"), 443),
    "hub by IPv6": (Place("2001:db8::10"), 443),
    "hub through NAT64": (Place("64:ff9b::cb00:710a"), 443),
    "registry on another port": (Place("203.0.113.10"), 8443),
    "DNS": (DNS, 53),
    "DNS of the node": (Place("169.254.20.10"), 53),
    "API server": (Place("10.0.0.10"), 6443),
    "API server's Service": (Place("10.96.0.1"), 443),
    "kubelet": (Place("10.0.0.20"), 10250),
    "object store in the cluster": (MINIO, 9000),
    "proxy in a private network": (Place("192.168.7.7"), 3128),
    "own job's rank": (pod_of(JOB, "train", "10.1.0.11"), 29500),
    "own job's rank's metrics": (pod_of(JOB, "train", "10.1.0.11"), 9400),
    "rank of the same team": (pod_of(SAME_TEAM, "train", "10.1.0.12"), 29500),
    "rank of another team": (pod_of(OTHER_TEAM, "train", "10.1.0.13"), 29500),
    "prepare of another team": (pod_of(OTHER_TEAM, "prepare", "10.1.0.14"), 9400),
    "operator's metrics": (PODS["operator"], 9400),
    "operator's health": (PODS["operator"], 8080),
    "pod of another team": (Place("10.1.0.15", "team-b", {"app": "x"}), 8080),
}

# By default. What is in no row is out of reach.
TABLE = {
    "prepare": {"hub", "hub by IPv6", "hub through NAT64", "registry on another port", "DNS", "DNS of the node"},
    "rank": {"DNS", "DNS of the node", "own job's rank", "own job's rank's metrics"},
    "rank with an identity": {"DNS", "DNS of the node"},
    "rank with wandb online": {"hub", "hub by IPv6", "hub through NAT64", "DNS", "DNS of the node"},
    "export": {"DNS", "DNS of the node"},
    "generator": set(),
    # Port 443 of the internet alone.
    "judge at an endpoint": {"hub", "hub by IPv6", "hub through NAT64", "DNS", "DNS of the node"},
    "judge in the cluster": {"pod of another team", "DNS", "DNS of the node"},
    "judge by a rule": set(),
    "operator": {
        # The API server may be anywhere, on these ports.
        "hub", "hub by IPv6", "hub through NAT64", "registry on another port", "API server", "API server's Service",
        "DNS", "DNS of the node", "own job's rank's metrics", "prepare of another team",
    },
    "prometheus": {"hub", "hub by IPv6", "hub through NAT64", "registry on another port", "DNS", "DNS of the node", "API server",
        "API server's Service", "kubelet", "object store in the cluster", "proxy in a private network", "pod of another team"},
}  # fmt: skip
TABLE["export that is pushed"] = TABLE["prepare"]
TABLE["copy to a mirror"] = TABLE["prepare"]
TABLE["rank of a job that is mirrored"] = TABLE["rank with an identity"]
TABLE["rank of a job that pushes"] = TABLE["rank with an identity"]
TABLE["prepare with an identity"] = TABLE["prepare"]
TABLE["a stranger"] = TABLE["prometheus"]


def policies(networks: Networks = CLOSED, *settings: str) -> list[dict[str, Any]]:
    chart = [
        {**p, "metadata": p["metadata"] | {"namespace": NAMESPACE}} for p in render(*settings).all("NetworkPolicy")
    ]
    networks = networks.model_copy(update={"metrics_namespaces": networks.metrics_namespaces or (NAMESPACE,)})
    jobs = (JOB, WANDB, IDENTIFIED, PUSHING, MIRRORED, ASKING, ASKING_INSIDE, RULED, SAME_TEAM, OTHER_TEAM)
    guards = [guard for job in jobs for phase in names.PHASES for guard in build_guards(job, phase, networks)]
    return chart + [guard for guard in guards if guard["kind"] == "NetworkPolicy"]


def reached(source: str, known: list[dict[str, Any]]) -> set[str]:
    return {
        name
        for name, (target, port) in TARGETS.items()
        if reaches(known, PODS[source], target, port, "UDP" if port == 53 else "TCP")
    }


@pytest.mark.parametrize("source", PODS)
def test_a_pod_reaches_this_and_nothing_else(source: str) -> None:
    assert reached(source, policies()) == TABLE[source]


IDENTITY_SERVICES = {"EKS": ("169.254.170.23", 80), "GKE": ("169.254.169.254", 80)}


@pytest.mark.parametrize("cloud", IDENTITY_SERVICES)
def test_the_identity_service_is_for_pods_that_reach_stores(cloud: str) -> None:
    known = policies(Networks.model_validate({"workload_identity": cloud}))
    reached_by = {
        (source, other)
        for source in (
            "prepare",
            "prepare with an identity",
            "rank with an identity",
            "export",
            "rank of a job that is mirrored",
            "copy to a mirror",
        )
        for other, (address, port) in IDENTITY_SERVICES.items()
        if reaches(known, PODS[source], Place(address), port)
    }
    assert reached_by == {("prepare with an identity", cloud), ("copy to a mirror", cloud)}
    assert not reaches(known, PODS["prepare with an identity"], Place(IDENTITY_SERVICES[cloud][0]), 443)


@pytest.mark.parametrize(
    "source",
    [
        "prepare",
        "prepare with an identity",
        "rank",
        "rank with wandb online",
        "export",
        "export that is pushed",
        "copy to a mirror",
        "generator",
        "judge at an endpoint",
        "judge in the cluster",
    ],
)
@pytest.mark.parametrize(
    "networks", [CLOSED, Networks(open=("100.64.0.0/10", "0.0.0.0/0", "::/0"))], ids=["closed", "open"]
)
def test_no_trainer_pod_reaches_a_metadata_service(source: str, networks: Networks) -> None:
    known = policies(networks)
    for net in METADATA:
        for address in (net[0], net[min(net.num_addresses - 1, 0xA9FE)], net[-1]):
            for port in (80, 443, 8080, 23):
                assert not reaches(known, PODS[source], Place(str(address)), port), (address, port)


def test_an_administrator_opens_and_closes_networks() -> None:
    opened = Networks(open=("192.168.7.0/24",), open_namespaces=("minio",), closed=("203.0.113.0/24", "2001:db8::/32"))
    assert reached("prepare", policies(opened)) == {
        "DNS",
        "DNS of the node",
        "object store in the cluster",
        "proxy in a private network",
    }
    # What is both is closed.
    both = Networks(open=("192.168.7.0/24",), closed=("192.168.0.0/16",))
    assert "proxy in a private network" not in reached("prepare", policies(both))


def test_who_scrapes_is_the_administrators_choice() -> None:
    chosen = policies(Networks(metrics_namespaces=(NAMESPACE, "prometheus")), "monitoring.namespaces={prometheus}")
    added = reached("prometheus", chosen) - TABLE["prometheus"]
    assert added == {"operator's metrics", "own job's rank's metrics", "prepare of another team"}
    assert reached("a stranger", chosen) == TABLE["a stranger"]


def test_the_operator_reads_pods_on_the_nodes_network_only_if_allowed() -> None:
    on_a_node = Place("10.0.0.20")
    assert not reaches(policies(), PODS["operator"], on_a_node, 20001)
    assert reaches(policies(CLOSED, "allow.hostNetwork=true"), PODS["operator"], on_a_node, 20001)


def test_a_known_address_of_the_api_server_can_be_the_only_one() -> None:
    settings = ("network.operator.apiServer.addresses={10.0.0.10/32}", "network.operator.apiServer.ports={6443}")
    assert "hub" not in reached("operator", policies(CLOSED, *settings))
    assert "API server" in reached("operator", policies(CLOSED, *settings))


def test_without_policies_everything_is_reached() -> None:
    """Negative control: the model itself keeps nothing apart."""
    assert reached("rank", []) == set(TARGETS)
