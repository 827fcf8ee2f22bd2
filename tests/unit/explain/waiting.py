"""Jobs that wait."""

from dpo_operator.api.status import DPOJobStatus
from dpo_operator.explain.case import Case
from dpo_operator.planning.objects import ChildPod
from tests.unit.explain.cases import Situations, case, container, event, raw_pod, unscheduled, waits
from tests.unit.planning.build import a_child, a_claim, a_job, a_pod, a_status, a_view, decide

WAITING = Situations()


@WAITING.add
def nobody_has_looked_at_it() -> Case:
    return case(DPOJobStatus())


@WAITING.add
def its_pods_are_starting() -> Case:
    return waits(raw_pod(0, node="gpu-0"), raw_pod(1, node="gpu-1"))


@WAITING.add
def no_node_has_room() -> Case:
    words = "0/3 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, 2 Insufficient nvidia.com/gpu."
    return waits(raw_pod(0, **unscheduled(words)), raw_pod(1, **unscheduled(words)), job=a_job(nodes=2, gpusPerNode=8))


@WAITING.add
def a_quota_is_used_up() -> Case:
    words = 'Error creating: pods "pairs-train-1-0-x7k2p" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8'
    return waits(events=(event("Job pairs-train-1", "FailedCreate", words, "uid-pairs-train-1", 4),))


@WAITING.add
def a_webhook_denies_its_pods() -> Case:
    words = 'Error creating: admission webhook "guard.example.org" denied the request: images must come from registry.example'
    return waits(events=(event("Job pairs-train-1", "FailedCreate", words, "uid-pairs-train-1"),))


@WAITING.add
def its_priority_class_does_not_exist() -> Case:
    words = 'Error creating: pods "pairs-train-1-0-x" is forbidden: no PriorityClass with name urgent was found'
    job = a_job(pod={"priorityClassName": "urgent"})
    return waits(job=job, events=(event("Job pairs-train-1", "FailedCreate", words, "uid-pairs-train-1"),))


@WAITING.add
def its_token_does_not_exist() -> Case:
    pod = raw_pod(0, "prepare", node="cpu-0")
    words = 'MountVolume.SetUp failed for volume "token" : secret "hf" not found'
    job = a_job(model={"name": "org/gated", "tokenSecretRef": {"name": "hf", "key": "token"}})
    said = event("Pod pairs-prepare-1-0-x7k2p", "FailedMount", words, "uid-pairs-prepare-1-0", 3)
    return waits(pod, job=job, phase="prepare", events=(said,))


@WAITING.add
def a_volume_can_not_be_mounted() -> Case:
    words = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) other-0'
    said = event("Pod pairs-train-1-0-x7k2p", "FailedAttachVolume", words, "uid-pairs-train-1-0")
    return waits(raw_pod(0, node="gpu-0"), raw_pod(1, node="gpu-1"), events=(said,))


@WAITING.add
def its_image_does_not_exist() -> Case:
    waiting = {
        "reason": "ImagePullBackOff",
        "message": 'Back-off pulling image "registry.example/trainer:0.9": not found',
    }
    job = a_job(pod={"image": "registry.example/trainer:0.9"})
    return waits(raw_pod(0, node="gpu-0", **container(waiting=waiting)), raw_pod(1, node="gpu-1"), job=job)


@WAITING.add
def its_container_can_not_be_made() -> Case:
    waiting = {"reason": "CreateContainerConfigError", "message": 'configmap "pairs-config-0123456789" not found'}
    return waits(raw_pod(0, node="gpu-0", **container(waiting=waiting)), raw_pod(1, node="gpu-1"))


@WAITING.add
def its_claim_does_not_exist() -> Case:
    job = a_job(checkpoint={"volume": {"claimName": "team-volume"}})
    status = a_status("prepare", created=False, volume=None)
    return case(decide(status, a_view(claim=None), job).status, job)


@WAITING.add
def its_claim_has_no_volume() -> Case:
    words = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    return waits(raw_pod(0, "prepare", **unscheduled(words)), claim=a_claim(bound=False), phase="prepare")


@WAITING.add
def its_claim_is_being_deleted() -> Case:
    return case(decide(a_status("prepare", created=False, volume=None), a_view(claim=a_claim(deleting=True))).status)


@WAITING.add
def its_claim_can_not_be_shared() -> Case:
    job = a_job(checkpoint={"volume": {"claimName": "mine"}})
    claim = a_claim(name="mine", access_modes=("ReadWriteOnce",), open=True)
    return case(decide(a_status("prepare", created=False, volume=None), a_view(claim=claim), job).status, job)


@WAITING.add
def an_object_of_its_name_is_there() -> Case:
    status = a_status("prepare", created=False, volume=None)
    return case(decide(status, a_view(claim=a_claim(token_digest="other"))).status)


@WAITING.add
def the_administrator_does_not_allow_its_claim() -> Case:
    job = a_job(checkpoint={"volume": {"claimName": "mine"}})
    status = a_status("prepare", created=False, volume=None)
    return case(decide(status, a_view(claim=a_claim(name="mine")), job).status, job)


@WAITING.add
def old_pods_still_stop() -> Case:
    old = a_pod(0, attempt=1, deleting=True)
    status = a_status(attempt=2, created=False)
    return case(decide(status, a_view(a_child(attempt=1, deleting=True), old)).status)


@WAITING.add
def the_api_server_refuses_its_job() -> Case:
    status = a_status(created=False)
    refused = 'jobs.batch "pairs-train-1" is forbidden: User "system:serviceaccount:dpo-system:dpo-operator" cannot create resource "jobs"'
    return case(decide(status, a_view(refused=refused)).status)


@WAITING.add
def it_waits_for_its_turn() -> Case:
    status = decide(a_status(), a_view(a_child(suspended=True), may_place=False)).status
    waited = [
        {"metadata": {"uid": str(n)}, "status": {"placementWait": {"waitingSince": f"2026-01-01T11:{n}:00Z"}}}
        for n in (10, 20)
    ]
    return case(status, others=tuple(waited))


@WAITING.add
def it_waits_in_a_queue() -> Case:
    job = a_job(queue={"kind": "Kueue", "name": "team"})
    return case(decide(a_status(), a_view(a_child(suspended=True)), job).status, job)


@WAITING.add
def its_gang_got_half_of_its_nodes() -> Case:
    words = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    pods = (raw_pod(0, node="gpu-0"), raw_pod(1, **unscheduled(words)))
    seen = a_view(a_child(), *(ChildPod.from_raw(p) for p in pods), placing_seconds=300.0)
    return case(decide(a_status(), seen).status, pods=pods, minutes=0)
