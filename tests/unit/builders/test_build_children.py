"""Manifests, read field by field."""

import hashlib
import itertools
import json

import pytest

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.config import build_config_map, is_config_map, job_file
from dpo_operator.builders.job import build_child_job
from dpo_operator.builders.pod import TrainerImage
from dpo_operator.builders.service import build_service, leads_alike
from dpo_operator.builders.volume import build_claim
from tests.unit.planning.build import UID, a_job

pytestmark = pytest.mark.unit

IMAGE = TrainerImage("registry.example/trainer:1", "Always")


def job_of(phase, attempt=1, **spec):
    return build_child_job(a_job(**spec), phase, attempt, IMAGE)


def pod_of(phase, attempt=1, **spec):
    return job_of(phase, attempt, **spec)["spec"]["template"]["spec"]


def container_of(phase, attempt=1, **spec):
    (container,) = pod_of(phase, attempt, **spec)["containers"]
    return container


def env_of(phase, attempt=1, **spec):
    return {e["name"]: e.get("value") for e in container_of(phase, attempt, **spec)["env"]}


def mounts_of(phase, **spec):
    return {m["mountPath"]: m for m in container_of(phase, **spec)["volumeMounts"]}


def test_job_of_an_attempt_is_never_repaired_by_kubernetes():
    job = job_of("train", 3, nodes=4)
    assert job["metadata"]["name"] == "pairs-train-3"
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (4, 4, "Indexed")
    assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (0, "Failed")
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("phase", ["prepare", "export"])
def test_prepare_and_export_are_one_pod_without_gpu(phase):
    job = job_of(phase, nodes=4, gpusPerNode=8, pod={"prepareResources": {"requests": {"cpu": 2}}})
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (1, 1)
    resources = job["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"] == {"cpu": "2", "memory": "1Gi"}
    assert resources.get("limits") == ({"memory": "32Gi"} if phase == "prepare" else None)
    assert "affinity" not in job["spec"]["template"]["spec"]


def test_gpus_are_requested_and_limited():
    resources = container_of("train", gpusPerNode=8, pod={"resources": {"limits": {"memory": "64Gi"}}})["resources"]
    assert resources == {"requests": {"nvidia.com/gpu": "8"}, "limits": {"memory": "64Gi", "nvidia.com/gpu": "8"}}
    assert container_of("train", gpusPerNode=0)["resources"] == {"requests": {"memory": "1Gi"}}


def test_other_gpus_are_requested_tolerated_and_told_to_the_trainer():
    amd = {"gpusPerNode": 8, "pod": {"gpuResource": "amd.com/gpu"}}
    assert container_of("train", **amd)["resources"] == {
        "requests": {"amd.com/gpu": "8", "memory": "1Gi"},
        "limits": {"amd.com/gpu": "8"},
    }
    assert {"nvidia.com/gpu", "amd.com/gpu"} <= {t["key"] for t in pod_of("train", **amd)["tolerations"]}
    env = {e["name"]: e.get("value") for e in container_of("train", **amd)["env"]}
    # No container runtime gives such a pod the GPUs of NVIDIA that other pods of its node have.
    assert (env["DPO_GPU_RESOURCE"], env["NVIDIA_VISIBLE_DEVICES"]) == ("amd.com/gpu", "void")
    # NVIDIA's device plugin sets the variable for its own resources.
    slices = container_of("train", gpusPerNode=1, pod={"gpuResource": "nvidia.com/mig-3g.40gb"})["env"]
    assert "NVIDIA_VISIBLE_DEVICES" not in {e["name"] for e in slices}
    for phase in ("prepare", "export"):
        assert "amd.com/gpu" not in str(pod_of(phase, **amd))
    assert "DPO_GPU_RESOURCE" not in str(pod_of("train", gpusPerNode=8))
    assert "DPO_GPU_RESOURCE" not in str(pod_of("train", gpusPerNode=0, pod={"gpuResource": "amd.com/gpu"}))


@pytest.mark.parametrize("named", ["requests", "limits"])
def test_memory_that_the_job_names_replaces_the_defaults(named):
    resources = container_of("prepare", pod={"prepareResources": {named: {"memory": "1Gi"}}})["resources"]
    assert resources == {named: {"memory": "1Gi"}}


def test_every_child_and_pod_is_labelled_and_owned():
    job = a_job()
    children = [build_child_job(job, "train", 2, IMAGE), build_service(job), build_config_map(job)]
    for child in children:
        labels = child["metadata"]["labels"]
        assert (labels[names.LABEL_UID], labels[names.LABEL_JOB]) == (UID, "pairs")
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (UID, True, False)
    labels = children[0]["spec"]["template"]["metadata"]["labels"]
    assert (labels[names.LABEL_PHASE], labels[names.LABEL_ATTEMPT], labels[names.LABEL_UID]) == ("train", "2", UID)


@pytest.mark.parametrize("phase", names.PHASES)
def test_pods_pass_the_restricted_level(phase):
    pod, container = pod_of(phase), container_of(phase)
    context = pod["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"], context["fsGroup"]) == (True, 65532, 65532)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container["securityContext"]
    assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert {kind for v in pod["volumes"] for kind in v if kind != "name"} <= {
        "persistentVolumeClaim", "configMap", "emptyDir", "secret"
    }  # fmt: skip


@pytest.mark.parametrize(("phase", "word"), [("prepare", "prepare"), ("train", "launch"), ("export", "export")])
def test_command_is_a_list_without_a_shell(phase, word):
    container = container_of(phase)
    assert container["command"] == ["python", "-m", "dpo_trainer", word]
    assert "args" not in container
    assert (container["image"], container["imagePullPolicy"]) == ("registry.example/trainer:1", "Always")
    assert container["terminationMessagePolicy"] == "File"


def test_ranks_find_each_other():
    env = env_of("train", 2, nodes=4, gpusPerNode=8)
    assert env["PET_MASTER_ADDR"] == "pairs-train-2-0.pairs-train"
    assert (env["PET_NNODES"], env["PET_NPROC_PER_NODE"], env["PET_MASTER_PORT"]) == ("4", "8", "29500")
    assert (env["DPO_ATTEMPT"], env["HF_HUB_OFFLINE"]) == ("2", "1")
    (rank,) = [e for e in container_of("train", nodes=4)["env"] if e["name"] == "PET_NODE_RANK"]
    path = "metadata.labels['batch.kubernetes.io/job-completion-index']"
    assert rank["valueFrom"]["fieldRef"]["fieldPath"] == path
    assert pod_of("train")["subdomain"] == "pairs-train"
    assert env_of("train", nodes=1)["PET_MASTER_ADDR"] == "127.0.0.1"
    assert env_of("train", gpusPerNode=0)["PET_NPROC_PER_NODE"] == "1"


def test_only_pods_with_gpus_see_any():
    for phase, gpus in itertools.product(("prepare", "train", "export"), (0, 8)):
        hidden = env_of(phase, gpusPerNode=gpus).get("NVIDIA_VISIBLE_DEVICES") == "void"
        assert hidden == (phase != "train" or gpus == 0)


def test_service_selects_the_training_pods_of_this_job_alone():
    service = build_service(a_job())
    assert service["metadata"]["name"] == "pairs-train"
    spec = service["spec"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)
    labels = job_of("train")["spec"]["template"]["metadata"]["labels"]
    assert spec["selector"].items() <= labels.items()
    assert not spec["selector"].items() <= job_of("prepare")["spec"]["template"]["metadata"]["labels"].items()


def test_two_ranks_never_share_a_node():
    (term,) = pod_of("train")["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"] == {names.LABEL_UID: UID, names.LABEL_PHASE: "train"}


@pytest.mark.parametrize("value", ["$(HOME)", "$$(X)", "a $ b", "`id`; rm -rf /", "--flag\n"])
def test_user_environment_is_taken_literally(value):
    shown = env_of("train", pod={"env": [{"name": "NCCL_DEBUG", "value": value}]})["NCCL_DEBUG"]
    # What Kubernetes makes of it: $$ is a $, and no $(NAME) is left to expand.
    assert "$(" not in shown.replace("$$", "")
    assert shown.replace("$$", "$") == value


def test_user_environment_reaches_training_and_generation():
    spec = {"pod": {"env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}}
    assert [phase for phase in names.PHASES if "NCCL_DEBUG" in env_of(phase, **spec)] == ["generate", "train"]


def test_the_key_of_a_tracker_is_a_file_and_in_training_alone():
    wandb = {"project": "p", "mode": "online", "apiKeySecretRef": {"name": "tracker", "key": "api"}}
    tracking = {"wandb": wandb}
    (secret,) = [v["secret"] for v in pod_of("train", tracking=tracking)["volumes"] if v["name"] == "wandb"]
    assert (secret["secretName"], secret["items"]) == ("tracker", [{"key": "api", "path": "key"}])
    assert secret["defaultMode"] == 0o440
    assert mounts_of("train", tracking=tracking)["/etc/dpo-wandb"]["readOnly"] is True
    for phase in ("prepare", "export"):
        assert "wandb" not in json.dumps(pod_of(phase, tracking=tracking))
    # A run folder on the volume needs none.
    assert "wandb" not in json.dumps(pod_of("train", tracking={"wandb": {"project": "p"}}))
    assert "valueFrom" not in json.dumps(
        [e for e in container_of("train", tracking=tracking)["env"] if "PET_" not in e["name"]]
    )


def test_token_is_a_file_and_in_prepare_alone():
    model = {"name": "org/model", "tokenSecretRef": {"name": "hub", "key": "read"}}
    (secret,) = [v["secret"] for v in pod_of("prepare", model=model)["volumes"] if "secret" in v]
    assert (secret["secretName"], secret["items"]) == ("hub", [{"key": "read", "path": "token"}])
    assert mounts_of("prepare", model=model)["/etc/dpo-token"]["readOnly"] is True
    assert env_of("prepare", model=model)["DPO_TOKEN_FILE"] == "/etc/dpo-token/token"
    for phase in ("train", "export"):
        assert not [v for v in pod_of(phase, model=model)["volumes"] if "secret" in v]
    assert "DPO_TOKEN_FILE" not in env_of("prepare")


ACCESS = {"credentialsSecretRef": {"name": "keys"}, "caBundleRef": {"name": "corporate", "key": "root.pem"}}


def test_keys_certificates_and_identity_are_for_prepare_alone():
    spec = {"access": ACCESS, "pod": {"serviceAccountName": "reader"}}
    pod = pod_of("prepare", **spec)
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["credentials"]["secret"] == {"secretName": "keys", "defaultMode": 0o440}
    assert volumes["ca"]["configMap"] == {"name": "corporate", "items": [{"key": "root.pem", "path": "ca.crt"}]}
    mounts = mounts_of("prepare", **spec)
    assert all(mounts[path]["readOnly"] for path in ("/etc/dpo-credentials", "/etc/dpo-ca"))
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("reader", False)
    assert env_of("prepare", **spec)["DPO_IDENTITY"] == "1"
    labels = job_of("prepare", **spec)["spec"]["template"]["metadata"]["labels"]
    assert labels["azure.workload.identity/use"] == "true"
    for phase in ("train", "export"):
        text = json.dumps(job_of(phase, **spec))
        assert not [word for word in ("keys", "corporate", "reader", "azure", "DPO_IDENTITY") if word in text]
    assert "serviceAccountName" not in pod_of("prepare", access=ACCESS)


def test_a_push_gives_its_keys_to_the_export_alone():
    push = {"to": "s3://models/out", "credentialsSecretRef": {"name": "writer"}}
    spec = {"access": ACCESS, "pod": {"serviceAccountName": "reader"}, "export": {"push": push}}
    secrets = {
        phase: [v["secret"]["secretName"] for v in pod_of(phase, **spec)["volumes"] if "secret" in v]
        for phase in ("prepare", "train", "export")
    }
    assert secrets == {"prepare": ["keys"], "train": [], "export": ["writer"]}
    assert mounts_of("export", **spec)["/etc/dpo-credentials"]["readOnly"] is True
    assert (pod_of("export", **spec)["serviceAccountName"], env_of("export", **spec)["DPO_IDENTITY"]) == ("reader", "1")
    spec["export"] = {"push": {"to": "s3://models/out"}}
    (shared,) = [v["secret"]["secretName"] for v in pod_of("export", **spec)["volumes"] if "secret" in v]
    assert shared == "keys"
    # The hub's client must not be told that it is offline.
    assert "HF_HUB_OFFLINE" in env_of("export", **spec)
    assert "HF_HUB_OFFLINE" not in env_of("export", export={"push": {"to": "hf://org/name"}})


def test_a_registrys_password_is_in_the_export_pod_alone():
    push = {"to": "oci://registry.example/team/model:v1", "credentialsSecretRef": {"name": "writer"}}
    spec = {"access": ACCESS, "pod": {"serviceAccountName": "reader"}, "export": {"push": push}}
    secrets = {
        phase: [v["secret"] for v in pod_of(phase, **spec)["volumes"] if "secret" in v]
        for phase in ("prepare", "train", "export")
    }
    items = [{"key": ".dockerconfigjson", "path": "config.json"}]
    assert secrets["export"] == [{"secretName": "writer", "items": items, "defaultMode": 0o440}]
    assert secrets["train"] == []
    assert [one["secretName"] for one in secrets["prepare"]] == ["keys"]
    assert mounts_of("export", **spec)["/etc/dpo-registry"]["readOnly"] is True
    # A registry asks for no identity, and the keys of stores are none of its business.
    assert "serviceAccountName" not in pod_of("export", **spec)
    assert "ca" in {v["name"] for v in pod_of("export", **spec)["volumes"]}
    spec["export"] = {"push": {"to": "oci://registry.example/team/model:v1"}}
    assert not [v for v in pod_of("export", **spec)["volumes"] if "secret" in v]


def test_claims_of_sources_are_mounted_read_only_in_prepare_alone():
    mixture = [{"source": "pvc://more/b.jsonl"}, {"source": "org/on-the-hub"}, {"source": "pvc://pairs/c.jsonl"}]
    data = {"train": {"source": "pvc://pairs/a.jsonl"}, "mixture": mixture, "eval": {"source": "pvc://held-out"}}
    spec = {
        "model": {"name": "pvc://pairs/model", "adapter": {"name": "pvc://sft/a"}},
        "data": data,
        "adapter": {"type": "lora"},
        "resumeFrom": {"source": "pvc://other-work/uid-1"},
    }
    mounts = mounts_of("prepare", **spec)
    assert [(m, mounts[m]["readOnly"]) for m in mounts if m.startswith("/claims")] == [
        ("/claims/pairs", True),
        ("/claims/sft", True),
        ("/claims/more", True),
        ("/claims/held-out", True),
        ("/claims/other-work", True),
    ]
    claims = [
        v["persistentVolumeClaim"]["claimName"]
        for v in pod_of("prepare", **spec)["volumes"]
        if "persistentVolumeClaim" in v
    ]
    assert claims == ["pairs-work", "pairs", "sft", "more", "held-out", "other-work"]
    # The volume too, so that the kubelet does not change the group of somebody else's files.
    assert [
        v["name"] for v in pod_of("prepare", **spec)["volumes"] if v.get("persistentVolumeClaim", {}).get("readOnly")
    ] == ["claim-0", "claim-1", "claim-2", "claim-3", "claim-4"]
    assert not [m for m in mounts_of("train", **spec) if m.startswith("/claims")]


def test_a_claim_that_is_read_and_written_is_one_volume():
    """A pod that names a claim twice may never start; and as one volume it can't be read-only."""
    data = {"train": {"source": "pvc://mine/a.jsonl"}, "eval": {"source": "pvc://models/b.jsonl"}}
    spec = {"data": data, "checkpoint": {"volume": {"claimName": "mine"}}, "cache": {"claimName": "models"}}
    for spec_, volumes in (
        (spec, {"/claims/mine": "work", "/claims/models": "cache", "/cache": "cache"}),
        (
            spec | {"cache": {"claimName": "mine"}},
            {"/claims/mine": "work", "/claims/models": "claim-1", "/cache": "work"},
        ),
    ):
        mounts = mounts_of("prepare", **spec_)
        assert {path: mounts[path]["name"] for path in volumes} == volumes
        assert mounts["/claims/mine"]["readOnly"] is True
        claims = [
            v["persistentVolumeClaim"]["claimName"]
            for v in pod_of("prepare", **spec_)["volumes"]
            if "persistentVolumeClaim" in v
        ]
        assert sorted(claims) == ["mine", "models"]


def test_the_cache_is_mounted_in_prepare_alone():
    cache = {"claimName": "models"}
    # Its folder alone, so that what else lies on the claim, such as other jobs' work, isn't there.
    assert mounts_of("prepare", cache=cache)["/cache"] == {
        "name": "cache",
        "mountPath": "/cache",
        "subPath": "dpo-cache",
    }
    (volume,) = [v for v in pod_of("prepare", cache=cache)["volumes"] if v["name"] == "cache"]
    assert volume["persistentVolumeClaim"] == {"claimName": "models"}
    assert env_of("prepare", cache=cache)["DPO_CACHE_DIR"] == "/cache"
    for phase in ("train", "export"):
        pod = pod_of(phase, cache=cache)
        assert not [v for v in pod["volumes"] if v.get("persistentVolumeClaim", {}).get("claimName") == "models"]
        assert "/cache" not in mounts_of(phase, cache=cache)
        assert "DPO_CACHE_DIR" not in env_of(phase, cache=cache)
    assert "/cache" not in mounts_of("prepare")
    assert "DPO_CACHE_DIR" not in env_of("prepare")


def test_job_has_a_folder_of_its_own_on_the_volume():
    for phase in names.PHASES:
        assert mounts_of(phase)["/work"]["subPath"] == UID
    pod = pod_of("train", checkpoint={"volume": {"claimName": "shared"}})
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "shared"


def test_shared_memory_has_the_size_that_was_asked_for():
    pod = pod_of("train", pod={"sharedMemory": "8Gi"})
    (shm,) = [v["emptyDir"] for v in pod["volumes"] if v["name"] == "shm"]
    assert shm == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert "/dev/shm" in mounts_of("train")


def test_lost_nodes_are_left_soon_and_gpu_nodes_tolerated():
    tolerations = pod_of("train", pod={"tolerations": [{"key": "team", "operator": "Exists"}]})["tolerations"]
    seconds = {t["key"]: t.get("tolerationSeconds") for t in tolerations}
    assert seconds == {
        "node.kubernetes.io/not-ready": 10,
        "node.kubernetes.io/unreachable": 10,
        "nvidia.com/gpu": None,
        "team": None,
    }
    assert "nvidia.com/gpu" not in {t["key"] for t in pod_of("prepare")["tolerations"]}
    own = {"tolerations": [{"key": "team", "operator": "Exists"}]}
    for phase in ("prepare", "export"):
        assert {"key": "team", "operator": "Exists"} in pod_of(phase, pod=own)["tolerations"]


def test_config_map_is_the_jobs_own_by_its_content():
    job = a_job()
    own = build_config_map(job)
    assert is_config_map(job, own | {"metadata": {}})
    for changed in (
        {"data": {"job.json": own["data"]["job.json"] + " "}},
        {"data": own["data"] | {"more": ""}},
        {"binaryData": {"more": ""}},
        {"immutable": False},
    ):
        assert not is_config_map(job, own | changed)
    assert not is_config_map(a_job(nodes=3), own)
    for phase in ("prepare", "train", "export"):
        digest = env_of(phase)["DPO_JOB_FILE_SHA256"]
        assert digest == hashlib.sha256(own["data"]["job.json"].encode()).hexdigest()
        assert own["metadata"]["name"].endswith(f"-config-{digest[:10]}")


def test_what_only_the_operator_reads_is_not_in_the_job_file():
    own = {
        "annotations": {"a": "x"},
        "labels": {"a": "x"},
        "gpuResource": "amd.com/gpu",
        "resourceClaims": [{"name": "a", "resourceClaimTemplateName": "t"}],
    }
    assert job_file(a_job(pod=own)) == job_file(a_job())
    assert job_file(a_job(pod={"sharedMemory": "8Gi"})) != job_file(a_job())


def test_job_file_is_a_job_that_the_trainer_can_read():
    job = a_job(method={"name": "dpo", "beta": 0.2})
    config = build_config_map(job)
    assert config["immutable"] is True
    document = json.loads(config["data"]["job.json"])
    assert DPOJob.model_validate(document) == job
    assert (document["spec"]["method"]["beta"], document["spec"]["training"]["globalBatchSize"]) == (0.2, 128)
    assert document["metadata"] == {"name": "pairs", "namespace": "default", "uid": UID}


def test_claim_of_the_job_follows_its_settings():
    volume = {"size": "500Gi", "storageClassName": "fast", "retention": "Delete"}
    claim = build_claim(a_job(checkpoint={"volume": volume}), "token")
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "500Gi"}},
        "storageClassName": "fast",
    }
    assert claim["metadata"]["ownerReferences"][0]["uid"] == UID
    kept = build_claim(a_job(nodes=1), "token")
    assert kept["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert "ownerReferences" not in kept["metadata"]
    assert "storageClassName" not in kept["spec"]


def test_same_job_gives_the_same_manifests():
    assert job_of("train") == job_of("train")
    assert build_config_map(a_job()) == build_config_map(a_job())


@pytest.mark.parametrize("phase", names.PHASES)
def test_pods_have_the_time_to_save_that_the_job_gives_them(phase):
    assert pod_of(phase)["terminationGracePeriodSeconds"] == 120
    assert pod_of(phase, pod={"terminationGracePeriodSeconds": 900})["terminationGracePeriodSeconds"] == 900


def test_a_service_that_leads_elsewhere_is_not_the_jobs() -> None:
    job = a_job()
    own = build_service(job)
    stored = own["spec"] | {"type": "ClusterIP", "clusterIPs": ["None"]}
    assert leads_alike({"spec": stored}, build_service(job))
    for changed in (
        {"selector": {"app": "other"}},
        {"selector": None},
        {"selector": stored["selector"] | {"a": "b"}},
        {"clusterIP": "10.0.0.1"},
        {"type": "ExternalName", "externalName": "other.example"},
        {"externalIPs": ["192.0.2.1"]},
    ):
        assert not leads_alike({"spec": stored | changed}, build_service(job)), changed
