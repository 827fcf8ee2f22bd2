"""Where pods are placed, how they are queued, and how they are connected."""

import pytest

from dpo_operator.api import names
from dpo_operator.api.rules.spec import violations
from dpo_operator.builders.job import build_child_job
from dpo_operator.builders.pod import TrainerImage
from dpo_operator.builders.ports import ports_of
from dpo_operator.builders.queue import Schedulers, build_pod_group
from dpo_operator.builders.service import build_service
from tests.unit.planning.build import UID, a_job

pytestmark = pytest.mark.unit

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def child_of(phase="train", **spec):
    return build_child_job(a_job(**spec), phase, 1, TrainerImage("t:1"), schedulers=Schedulers("v", "p", "k"))


def pod_of(phase="train", **spec):
    return child_of(phase, **spec)["spec"]["template"]["spec"]


def env_of(phase="train", **spec):
    return {e["name"]: e.get("value") for e in pod_of(phase, **spec)["containers"][0]["env"]}


def network(**fields):
    return {"pod": {"network": fields}}


def test_ranks_are_packed_and_still_on_nodes_of_their_own():
    affinity = pod_of(pod={"topology": {"packBy": "rack"}})["affinity"]
    assert affinity["podAntiAffinity"][REQUIRED][0]["topologyKey"] == "kubernetes.io/hostname"
    (preferred,) = affinity["podAffinity"][PREFERRED]
    assert preferred["podAffinityTerm"]["topologyKey"] == "rack"
    assert preferred["podAffinityTerm"]["labelSelector"]["matchLabels"][names.LABEL_UID] == UID
    affinity = pod_of(pod={"topology": {"packBy": "rack", "required": True}})["affinity"]
    assert affinity["podAffinity"][REQUIRED][0]["topologyKey"] == "rack"


@pytest.mark.parametrize(("required", "otherwise"), [(True, "DoNotSchedule"), (False, "ScheduleAnyway")])
def test_ranks_are_spread(required, otherwise):
    (spread,) = pod_of(pod={"topology": {"spreadBy": "zone", "required": required}})["topologySpreadConstraints"]
    assert (spread["maxSkew"], spread["topologyKey"], spread["whenUnsatisfiable"]) == (1, "zone", otherwise)
    assert spread["labelSelector"]["matchLabels"] == {names.LABEL_UID: UID, names.LABEL_PHASE: "train"}


def test_only_training_is_placed_by_topology():
    for phase in ("prepare", "export"):
        pod = pod_of(phase, pod={"topology": {"packBy": "rack", "spreadBy": "zone"}})
        assert not {"affinity", "topologySpreadConstraints"} & set(pod)


def test_the_nodes_network_is_for_training_alone():
    pod = pod_of(**network(hostNetwork=True))
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    for phase in ("prepare", "export"):
        assert "hostNetwork" not in pod_of(phase, **network(hostNetwork=True))
    assert "hostNetwork" not in pod_of()


def test_ports_on_the_nodes_network_are_the_jobs_own():
    job = a_job(**network(hostNetwork=True))
    ports = ports_of(job)
    assert (ports_of(job, "prepare"), ports_of(a_job())) == ((29500, 9400), (29500, 9400))
    container = pod_of(**network(hostNetwork=True))["containers"][0]
    # The scheduler keeps pods apart that name the same port of the host.
    assert {p["containerPort"] for p in container["ports"]} == set(ports)
    env = env_of(**network(hostNetwork=True))
    assert (env["PET_MASTER_PORT"], env["DPO_METRICS_PORT"]) == (str(ports.master), str(ports.metrics))
    assert {p["port"] for p in build_service(job)["spec"]["ports"]} == set(ports)
    assert env_of("prepare", **network(hostNetwork=True))["DPO_METRICS_PORT"] == "9400"


def test_ports_differ_between_jobs_and_stay_out_of_the_way():
    found = [ports_of(a_job(metadata={"uid": f"uid-{i}"}, **network(hostNetwork=True))) for i in range(200)]
    assert all(20000 <= p.master < p.metrics < 29000 for p in found)
    assert len(set(found)) > 190


def test_rdma_is_requested_once_for_each_training_pod():
    spec = {"gpusPerNode": 8} | network(rdmaResource="rdma/ib")
    resources = pod_of(**spec)["containers"][0]["resources"]
    assert resources["requests"]["rdma/ib"] == resources["limits"]["rdma/ib"] == "1"
    assert "rdma/ib" not in str(pod_of("prepare", **spec))


def test_training_pods_get_their_resource_claims():
    claim = {"name": "imex", "resourceClaimTemplateName": "imex-channel"}
    spec = {"gpusPerNode": 4, "pod": {"resourceClaims": [claim]}}
    pod = pod_of(**spec)
    assert pod["resourceClaims"] == [claim]
    resources = pod["containers"][0]["resources"]
    assert (resources["claims"], resources["limits"]["nvidia.com/gpu"]) == ([{"name": "imex"}], "4")
    for phase in ("prepare", "export"):
        assert "imex" not in str(pod_of(phase, **spec))
    assert "claims" not in pod_of()["containers"][0]["resources"]


def test_the_interface_reaches_nccl_and_gloo():
    env = env_of(**network(interface="ib0"))
    assert (env["NCCL_SOCKET_IFNAME"], env["GLOO_SOCKET_IFNAME"]) == ("=ib0", "ib0")
    assert "GLOO_SOCKET_IFNAME" not in env_of("export", **network(interface="ib0"))


def test_kueue_finds_its_label_on_a_suspended_job():
    queue = {"kind": "Kueue", "name": "team", "priorityClass": "high"}
    for nodes in (1, 2):
        job = child_of(nodes=nodes, queue=queue)
        assert job["spec"]["suspend"] is True
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
        assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
        assert "schedulerName" not in job["spec"]["template"]["spec"]
    for phase in ("prepare", "export"):
        job = child_of(phase, queue=queue)
        assert job["spec"]["suspend"] is False
        assert "kueue" not in str(job)
    assert build_pod_group(a_job(queue=queue)) is None


def test_volcano_finds_the_pod_group():
    queue = {"kind": "Volcano", "name": "team", "priorityClass": "high"}
    group = build_pod_group(a_job(queue=queue))
    assert group["apiVersion"] == "scheduling.volcano.sh/v1beta1"
    assert group["spec"] == {"minMember": 2, "queue": "team", "priorityClassName": "high"}
    job = child_of(queue=queue)
    template = job["spec"]["template"]
    assert template["metadata"]["annotations"]["scheduling.k8s.io/group-name"] == group["metadata"]["name"]
    assert (template["spec"]["schedulerName"], job["spec"]["suspend"]) == ("v", False)


def test_scheduler_plugins_find_the_pod_group():
    queue = {"kind": "SchedulerPlugins"}
    group = build_pod_group(a_job(queue=queue))
    assert group["apiVersion"] == "scheduling.x-k8s.io/v1alpha1"
    assert group["spec"] == {"minMember": 2, "scheduleTimeoutSeconds": 300}
    template = child_of(queue=queue)["spec"]["template"]
    assert template["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] == group["metadata"]["name"]
    assert template["spec"]["schedulerName"] == "p"


@pytest.mark.parametrize("required", [True, False])
def test_kueue_reads_the_topology_on_the_pods(required):
    rack = "cloud.provider.com/topology-rack"
    topology = {"packBy": rack, "required": required}
    template = child_of(queue={"kind": "Kueue", "name": "team", "topology": topology})["spec"]["template"]
    asked = {k: v for k, v in template["metadata"]["annotations"].items() if k.startswith("kueue")}
    assert asked == {f"kueue.x-k8s.io/podset-{'required' if required else 'preferred'}-topology": rack}
    assert "podAffinity" not in template["spec"]["affinity"]


@pytest.mark.parametrize(
    ("topology", "wanted"),
    [
        ({"highestTier": 2, "required": True}, {"mode": "hard", "highestTierAllowed": 2}),
        ({}, {"mode": "soft"}),
    ],
)
def test_volcano_reads_the_topology_in_the_pod_group(topology, wanted):
    group = build_pod_group(a_job(queue={"kind": "Volcano", "topology": topology}))
    assert group["spec"] == {"minMember": 2, "networkTopology": wanted}


def test_kai_finds_its_queue_and_the_gang_on_the_job():
    job = child_of(nodes=4, queue={"kind": "KAI", "name": "team"})
    template = job["spec"]["template"]
    assert job["metadata"]["labels"]["kai.scheduler/queue"] == "team"
    assert template["metadata"]["labels"]["kai.scheduler/queue"] == "team"
    assert job["metadata"]["annotations"]["kai.scheduler/batch-min-member"] == "4"
    assert (template["spec"]["schedulerName"], job["spec"]["suspend"]) == ("k", False)
    assert build_pod_group(a_job(queue={"kind": "KAI", "name": "team"})) is None
    assert "kai" not in str(child_of("prepare", queue={"kind": "KAI", "name": "team"}))


def test_allowed_metadata_is_on_every_pod_beside_the_operators_own():
    own = {"annotations": {"k8s.v1.cni.cncf.io/networks": '[{"name": "ib0"}]'}, "labels": {"team": "red"}}
    for phase in names.PHASES:
        metadata = child_of(phase, pod=own)["spec"]["template"]["metadata"]
        assert metadata["annotations"] == own["annotations"] | {names.LABEL_ATTEMPT: "1"}
        assert metadata["labels"] == {"team": "red"} | child_of(phase)["spec"]["template"]["metadata"]["labels"]
        assert "red" not in str(child_of(phase, pod=own)["metadata"])


@pytest.mark.parametrize("part", ["annotations", "labels"])
@pytest.mark.parametrize(
    "key",
    [
        *("dpo-operator.dev/job-uid", "x.dpo-operator.dev/y", "job-name", "controller-uid", "pod-template-hash"),
        *("batch.kubernetes.io/job-completion-index", "app.kubernetes.io/name", "kubernetes.io/hostname", "k8s.io/x"),
        *("container.apparmor.security.beta.kubernetes.io/trainer", "cluster-autoscaler.kubernetes.io/safe-to-evict2"),
        *("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/pod-group-name", "scheduling.x-k8s.io/pod-group"),
        *("scheduling.k8s.io/group-name", "scheduling.volcano.sh/queue-name", "kai.scheduler/queue"),
        "azure.workload.identity/use",
    ],
)
def test_keys_of_others_are_refused_whatever_is_allowed(part, key):
    (sentence,) = violations(a_job(pod={part: {key: "x"}}))
    assert sentence.startswith(f"spec.pod.{part}: must not set")


def test_keys_that_only_clusters_read_are_left_to_the_allow_list():
    keys = (
        *("k8s.v1.cni.cncf.io/networks", "sidecar.istio.io/inject", "kueue.x-k8s.io/podset-required-topology"),
        *(
            "cluster-autoscaler.kubernetes.io/safe-to-evict",
            "karpenter.sh/do-not-disrupt",
            "team",
            "my-kubernetes.io/x",
        ),
    )
    assert violations(a_job(pod={"annotations": dict.fromkeys(keys, "x"), "labels": dict.fromkeys(keys, "x")})) == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"queue": {"kind": "Kueue"}}, "spec.queue"),
        ({"queue": {"kind": "SchedulerPlugins", "name": "x"}}, "spec.queue"),
        ({"queue": {"kind": "SchedulerPlugins", "priorityClass": "x"}}, "spec.queue"),
        ({"queue": {"kind": "KAI"}}, "spec.queue"),
        ({"queue": {"kind": "KAI", "name": "q", "priorityClass": "x"}}, "spec.queue"),
        *(
            ({"queue": {"kind": kind, "topology": topology} | name}, "spec.queue.topology")
            for kind, name, topology in (
                ("Kueue", {"name": "q"}, {"required": True}),
                ("Kueue", {"name": "q"}, {"packBy": "rack", "highestTier": 1}),
                ("Volcano", {}, {"packBy": "rack"}),
                ("Volcano", {}, {"required": True}),
                ("Volcano", {}, {"highestTier": 1}),
                ("SchedulerPlugins", {}, {}),
                ("KAI", {"name": "q"}, {"packBy": "rack"}),
            )
        ),
        (
            {"queue": {"kind": "Volcano", "topology": {}}, "pod": {"topology": {"packBy": "rack"}}},
            "spec.queue.topology",
        ),
        ({"pod": {"topology": {}}}, "spec.pod.topology"),
        ({"pod": {"topology": {"packBy": "a", "spreadBy": "a"}}}, "spec.pod.topology"),
        ({"pod": {"topology": {"packBy": "kubernetes.io/hostname"}}}, "spec.pod.topology"),
        (network(rdmaResource="memory"), "spec.pod.network.rdmaResource"),
        (network(rdmaResource="nvidia.com/gpu"), "spec.pod.network.rdmaResource"),
        (network(rdmaResource="gpu.intel.com/xe"), "spec.pod.network.rdmaResource"),
        ({"pod": {"network": {"rdmaResource": "a/b"}, "gpuResource": "a/b"}}, "spec.pod.network.rdmaResource"),
        ({"pod": {"resources": {"limits": {"gpu.intel.com/i915": 1}}}}, "spec.pod.resources"),
        ({"pod": {"resources": {"limits": {"habana.ai/gaudi": 1}}}}, "spec.pod.resources"),
        ({"pod": {"resources": {"limits": {"a/b": 1}}, "gpuResource": "a/b"}}, "spec.pod.resources"),
        ({"pod": {"prepareResources": {"limits": {"a/b": 1}}, "gpuResource": "a/b"}}, "spec.pod.prepareResources"),
        ({"pod": {"gpuResource": "cpu"}}, "spec.pod.gpuResource"),
        ({"pod": {"gpuResource": "requests.a/b"}}, "spec.pod.gpuResource"),
        ({"pod": {"gpuResource": "kubernetes.io/batteries"}}, "spec.pod.gpuResource"),
        (
            {"pod": {"network": {"rdmaResource": "rdma/ib"}, "resources": {"limits": {"rdma/ib": 2}}}},
            "spec.pod.network.rdmaResource",
        ),
        (
            {"pod": {"network": {"interface": "ib0"}, "env": [{"name": "NCCL_SOCKET_IFNAME", "value": "x"}]}},
            "spec.pod.network.interface",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(spec, field):
    (sentence,) = violations(a_job(**spec))
    assert sentence.startswith(field)
