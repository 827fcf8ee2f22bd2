"""Pod templates of the phases. They pass the restricted Pod Security level."""

from dataclasses import dataclass
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.base import SecretKeyRef
from dpo_operator.api.pods import ResourceList
from dpo_operator.api.reports import RecordedCheckpoints
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.access import (
    credentials_of,
    has_identity,
    mirror_credentials,
    reaches_sources,
    registry_secret,
    trusts_bundle,
)
from dpo_operator.builders.common import build_labels
from dpo_operator.builders.config import JOB_FILE_KEY, config_name
from dpo_operator.builders.environment import TEMPORARY, build_environment
from dpo_operator.builders.placement import beside_the_job, node_choice, placement
from dpo_operator.builders.ports import container_ports
from dpo_operator.builders.shape import SIZED, endpoint_of, gpus_of, judge_key
from dpo_operator.builders.volume import claim_name, source_claims

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - NCCL looks for it there
TRAINER_UID = 65532
TEMPORARY_SIZE = "10Gi"
# Memory of pods whose job names none. With a request, a pod isn't the first that a full node evicts. Prepare works on others' input, which
# may ask for any amount; the export needs the model's size, so it has no limit.
MEMORY_REQUEST = "1Gi"
PREPARE_MEMORY_LIMIT = "32Gi"
# How long a pod stays on a node that stopped answering; Kubernetes' own default is 300.
LOST_NODE_SECONDS = 10
# What a judge's pod has to write down answers after the last of them came.
DRAIN_SECONDS = 10

# By which Azure's webhook knows pods that ask for an identity; others ignore it.
AZURE_IDENTITY = "azure.workload.identity/use"

# Key of a Secret of type kubernetes.io/dockerconfigjson.
DOCKER_CONFIG = ".dockerconfigjson"

COMMANDS: dict[names.PodKind, tuple[str, ...]] = {
    "prepare": ("prepare",),
    "generate": ("launch", "--phase", "generate"),
    "judge": ("judge",),
    "train": ("launch",),
    "export": ("export",),
    "mirror": ("mirror",),
}


@dataclass(frozen=True)
class TrainerImage:
    """The operator's defaults for jobs that name no image. generate: with vLLM; empty where the cluster has none."""

    name: str
    pull_policy: str = "IfNotPresent"
    generate: str = ""

    def of(self, job: DPOJob, phase: names.PodKind) -> str:
        """The image of a phase."""
        if phase == "generate" and job.spec.generates_with_vllm:
            return job.spec.pod.generate_image or self.generate
        return job.spec.pod.image or self.name


def build_pod_template(
    job: DPOJob,
    phase: names.PodKind,
    attempt: int,
    image: TrainerImage,
    recorded: RecordedCheckpoints | None = None,
    number: int = 0,
) -> dict[str, Any]:
    """Template of one phase's pods, or of one that copies checkpoints. recorded: the checkpoints that they may use; None for a first prepare.

    number: of the round or leg; 0 for none.
    """
    pod = job.spec.pod
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _grace_seconds(job, phase),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": TRAINER_UID,
            "runAsGroup": TRAINER_UID,
            "fsGroup": TRAINER_UID,
            # Without this, every start would change the owner of every file on a large volume.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            _container(job, phase, image, build_environment(job, phase, attempt, recorded, number), recorded)
        ],
        "volumes": _volumes(job, phase, recorded),
        "tolerations": _tolerations(job, phase),
    }
    if pod.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in pod.image_pull_secrets]
    if pod.priority_class_name is not None:
        spec["priorityClassName"] = pod.priority_class_name
    # What the operator sets wins; the rules let no job name it, either.
    labels = dict(pod.labels) | build_labels(job, phase, attempt, number)
    if has_identity(job, phase):
        # Its identity in a cloud comes from that cloud's webhook or metadata service; the API server's token is not mounted.
        spec["serviceAccountName"] = pod.service_account_name
        labels[AZURE_IDENTITY] = "true"
    if phase == "mirror":
        spec |= beside_the_job(job)
    if gpus_of(job, phase) or phase in SIZED:
        spec |= node_choice(job)
    if phase == "train":
        spec |= placement(job)
        if pod.resource_claims:
            spec["resourceClaims"] = [
                {"name": claim.name, "resourceClaimTemplateName": claim.resource_claim_template_name}
                for claim in pod.resource_claims
            ]
        if job.spec.pod.network.host_network:
            # With hostNetwork, the cluster's DNS is used only with this policy.
            spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    metadata = {"labels": labels, "annotations": dict(pod.annotations) | {names.LABEL_ATTEMPT: str(attempt)}}
    return {"metadata": metadata, "spec": spec}


def _grace_seconds(job: DPOJob, phase: names.PodKind) -> int:
    """What the job gives; for a judge at least what the requests in flight take, whose answers would be paid for again."""
    seconds, endpoint = job.spec.pod.termination_grace_period_seconds, endpoint_of(job, phase)
    return seconds if endpoint is None else max(seconds, endpoint.timeout_seconds + DRAIN_SECONDS)


def _container(
    job: DPOJob,
    phase: names.PodKind,
    image: TrainerImage,
    environment: list[dict[str, Any]],
    recorded: RecordedCheckpoints | None,
) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [
        {"name": "work", "mountPath": names.WORK_DIR, "subPath": job.metadata.uid},
        {"name": "config", "mountPath": names.JOB_FILE.rpartition("/")[0], "readOnly": True},
        {"name": "tmp", "mountPath": TEMPORARY},
        {"name": "shm", "mountPath": SHARED_MEMORY},
    ]
    if phase == "mirror":
        # Of the mount, not of the volume: the driver could not attach one volume in two ways.
        mounts[0]["readOnly"] = True
    if phase == "prepare":
        volumes = _claim_volumes(job)
        mounts += [
            {"name": volumes[claim], "mountPath": f"{names.CLAIMS_DIR}/{claim}", "readOnly": True}
            for claim in source_claims(job)
        ]
        if job.spec.cache is not None:
            mounts.append({"name": _cache_volume(job), "mountPath": names.CACHE_DIR, "subPath": names.CACHE_FOLDER})
        if job.spec.model.token_secret_ref is not None:
            mounts.append({"name": "token", "mountPath": names.TOKEN_FILE.rpartition("/")[0], "readOnly": True})
    if _mirror_keys(job, phase, recorded) is not None:
        mounts.append({"name": "mirror", "mountPath": names.MIRROR_CREDENTIALS_DIR, "readOnly": True})
    if reaches_sources(job, phase) and credentials_of(job, phase) is not None:
        mounts.append({"name": "credentials", "mountPath": names.CREDENTIALS_DIR, "readOnly": True})
    if registry_secret(job, phase) is not None:
        folder = names.REGISTRY_CONFIG.rpartition("/")[0]
        mounts.append({"name": "registry", "mountPath": folder, "readOnly": True})
    if trusts_bundle(job, phase):
        mounts.append({"name": "ca", "mountPath": names.CA_FILE.rpartition("/")[0], "readOnly": True})
    if judge_key(job, phase) is not None:
        mounts.append({"name": "judge", "mountPath": names.JUDGE_KEY_FILE.rpartition("/")[0], "readOnly": True})
    if phase == "train" and _wandb_key(job) is not None:
        mounts.append({"name": "wandb", "mountPath": names.WANDB_KEY_FILE.rpartition("/")[0], "readOnly": True})
    return {
        "name": names.CONTAINER,
        "image": image.of(job, phase),
        "imagePullPolicy": job.spec.pod.image_pull_policy or image.pull_policy,
        "command": ["python", "-m", "dpo_trainer", *COMMANDS[phase]],
        "env": environment,
        "ports": container_ports(job, phase),
        "resources": _resources(job, phase),
        "volumeMounts": mounts,
        "terminationMessagePath": names.TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _resources(job: DPOJob, phase: names.PodKind) -> dict[str, Any]:
    wanted: ResourceList = job.spec.pod.resources if phase in SIZED else job.spec.pod.prepare_resources
    requests, limits = dict(wanted.requests), dict(wanted.limits)
    if "memory" not in requests | limits:
        requests["memory"] = MEMORY_REQUEST
        if phase == "prepare":
            limits["memory"] = PREPARE_MEMORY_LIMIT
    if gpus := gpus_of(job, phase):
        gpu = job.spec.pod.gpu_resource
        requests[gpu] = limits[gpu] = str(gpus)
    if phase == "train" and (rdma := job.spec.pod.network.rdma_resource) is not None:
        requests[rdma] = limits[rdma] = "1"
    claims = [{"name": claim.name} for claim in job.spec.pod.resource_claims] if phase == "train" else []
    parts = (("requests", requests), ("limits", limits), ("claims", claims))
    return {key: value for key, value in parts if value}


def _volumes(job: DPOJob, phase: names.PodKind, recorded: RecordedCheckpoints | None) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "work", "persistentVolumeClaim": {"claimName": claim_name(job)}},
        {
            "name": "config",
            "configMap": {
                "name": config_name(job),
                "items": [{"key": JOB_FILE_KEY, "path": names.JOB_FILE.rpartition("/")[2]}],
            },
        },
        # Models and data are on the claim. Exceeding this limit evicts the pod before the node's disk is full.
        {"name": "tmp", "emptyDir": {"sizeLimit": TEMPORARY_SIZE}},
        # Kubernetes gives 64 MiB by default, too little for NCCL between the GPUs of a node.
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.spec.pod.shared_memory}},
    ]
    if phase == "train" and (key := _wandb_key(job)) is not None:
        volumes.append(_secret_file("wandb", key, names.WANDB_KEY_FILE))
    if (keys := _mirror_keys(job, phase, recorded)) is not None:
        volumes.append({"name": "mirror", "secret": {"secretName": keys, "defaultMode": 0o440}})
    if (key := judge_key(job, phase)) is not None:
        volumes.append(_secret_file("judge", key, names.JUDGE_KEY_FILE))
    volumes += _access_volumes(job, phase)
    if phase != "prepare":
        return volumes
    # readOnly here, and not only in the container: else the kubelet gives every file of a foreign claim the group fsGroup.
    volumes += [
        {"name": volume, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        for claim, volume in _claim_volumes(job).items()
        if volume not in ("work", "cache")
    ]
    if (cache := job.spec.cache) is not None and _cache_volume(job) == "cache":
        volumes.append({"name": "cache", "persistentVolumeClaim": {"claimName": cache.claim_name}})
    if (token := job.spec.model.token_secret_ref) is not None:
        volumes.append(_secret_file("token", token, names.TOKEN_FILE))
    return volumes


def _access_volumes(job: DPOJob, phase: names.PodKind) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = []
    secret = credentials_of(job, phase) if reaches_sources(job, phase) else None
    if secret is not None:
        volumes.append({"name": "credentials", "secret": {"secretName": secret, "defaultMode": 0o440}})
    if (secret := registry_secret(job, phase)) is not None:
        key = SecretKeyRef(name=secret, key=DOCKER_CONFIG)
        volumes.append(_secret_file("registry", key, names.REGISTRY_CONFIG))
    bundle = job.spec.way_out.ca_bundle_ref
    if bundle is not None and trusts_bundle(job, phase):
        item = {"key": bundle.key, "path": names.CA_FILE.rpartition("/")[2]}
        volumes.append({"name": "ca", "configMap": {"name": bundle.name, "items": [item]}})
    return volumes


def _mirror_keys(job: DPOJob, phase: names.PodKind, recorded: RecordedCheckpoints | None) -> str | None:
    """Secret of the mirror, in the pods that write to it and fetch from it; None without one."""
    uses = phase == "mirror" or (phase == "prepare" and recorded is not None)
    return mirror_credentials(job) if uses else None


def _claim_volumes(job: DPOJob) -> dict[str, str]:
    """Volume of each claim that is read from. A pod has each claim once, so one that is written to as well is that volume."""
    named = {claim: f"claim-{i}" for i, claim in enumerate(source_claims(job))}
    cache = {job.spec.cache.claim_name: _cache_volume(job)} if job.spec.cache is not None else {}
    written = cache | {claim_name(job): "work"}
    return {claim: written.get(claim, volume) for claim, volume in named.items()}


def _cache_volume(job: DPOJob) -> str:
    return "work" if job.spec.cache is not None and job.spec.cache.claim_name == claim_name(job) else "cache"


def _secret_file(volume: str, secret: SecretKeyRef, path: str) -> dict[str, Any]:
    """One key of a Secret as a file: an environment variable would show in more places."""
    item = {"key": secret.key, "path": path.rpartition("/")[2]}
    return {"name": volume, "secret": {"secretName": secret.name, "items": [item], "defaultMode": 0o440}}


def _wandb_key(job: DPOJob) -> SecretKeyRef | None:
    wandb = job.spec.tracking.wandb
    return wandb.api_key_secret_ref if wandb is not None and wandb.mode == "online" else None


def _tolerations(job: DPOJob, phase: names.PodKind) -> list[dict[str, Any]]:
    lost_node = [
        {
            "key": f"node.kubernetes.io/{taint}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_SECONDS,
        }
        for taint in ("not-ready", "unreachable")
    ]
    # The job's tolerations are for every phase, since all nodes may have a taint; the toleration of GPUs only where GPUs are used.
    own = [t.model_dump(mode="json", by_alias=True, exclude_none=True) for t in job.spec.pod.tolerations]
    on_gpu_nodes = phase in SIZED or gpus_of(job, phase) > 0 or (phase == "mirror" and job.spec.nodes == 1)
    keys = dict.fromkeys((names.GPU, job.spec.pod.gpu_resource)) if on_gpu_nodes else ()
    gpu = [{"key": key, "operator": "Exists"} for key in keys]
    return [*lost_node, *gpu, *own]
