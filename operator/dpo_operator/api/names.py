"""Names that cross a process border: API group, labels, annotations, child objects, environment variables, ports."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

GROUP = "dpo-operator.dev"
VERSION = "v1alpha1"
PLURAL = "dpojobs"
KIND = "DPOJob"
API_VERSION = f"{GROUP}/{VERSION}"
MANAGER = f"{GROUP}/dpo-operator"

# In their order; generate and judge are of jobs with rounds (spec.iterative).
Phase = Literal["prepare", "generate", "judge", "train", "export"]
PHASES: tuple[Phase, ...] = ("prepare", "generate", "judge", "train", "export")
# Kinds of pods: those of the phases, and those that copy checkpoints to a mirror beside them.
PodKind = Literal["prepare", "generate", "judge", "train", "export", "mirror"]

# Labels of every child object. Selection is by UID, so that a later job of the same name adopts nothing.
LABEL_JOB = f"{GROUP}/job"
LABEL_UID = f"{GROUP}/job-uid"
LABEL_PHASE = f"{GROUP}/phase"
LABEL_ATTEMPT = f"{GROUP}/attempt"
# Of a phase of a round: its number, from 1.
LABEL_ROUND = f"{GROUP}/round"
# Of a phase of a leg of a sweep, and of the export of one: its number, from 1.
LABEL_LEG = f"{GROUP}/leg"
# On a claim, by its owner: DPOJobs of its namespace may use it.
LABEL_ALLOW_USE = f"{GROUP}/allow-use"
LABEL_PART_OF = "app.kubernetes.io/part-of"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
PART_OF = "dpo-operator"

# Of a claim that the operator made: text whose SHA-256 was in the status before the claim existed.
ANNOTATION_CLAIM_TOKEN = f"{GROUP}/claim-token"
# Changed to make the Job controller retry the creation of pods.
ANNOTATION_TRIED = f"{GROUP}/tried-again"

# Set by a user, or by `kubectl dpo retry`: a new value retries a failed job.
ANNOTATION_RETRY = f"{GROUP}/retry"

# Of a batch/v1 Job: nodes and GPUs per node, even if an admission webhook changes its resources.
ANNOTATION_SIZE = f"{GROUP}/size"

# Name of the container that trains; admission webhooks may add others.
CONTAINER = "trainer"

# Kubernetes' own label and annotation that tell a pod of an Indexed Job its rank.
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"

# A pod's host name is "<job>-generate-<attempt>-<index>" and must be a DNS label of at most 63 characters:
# 44 + len("-generate-") + 4 digits of attempt + "-" + 4 digits of index; "-train-" leaves 7 digits of attempt.
MAX_JOB_NAME = 44
JOB_NAME_PATTERN = "^[a-z]([-a-z0-9]*[a-z0-9])?$"

# Where things are inside a trainer container.
JOB_FILE = "/etc/dpo/job.json"
WORK_DIR = "/work"
TOKEN_FILE = "/etc/dpo-token/token"  # noqa: S105 - a path, not a secret
WANDB_KEY_FILE = "/etc/dpo-wandb/key"
# In the judge's pod alone: the key of the endpoint that judges.
JUDGE_KEY_FILE = "/etc/dpo-judge/key"
# A file for each key of the Secret, and the certificates to trust.
CREDENTIALS_DIR = "/etc/dpo-credentials"
# In a prepare pod that restores: the same for the Secret of checkpoint.mirror, where it has its own.
MIRROR_CREDENTIALS_DIR = "/etc/dpo-mirror-credentials"
# In an export pod that pushes to a registry: users and passwords, as Docker's config.json.
REGISTRY_CONFIG = "/etc/dpo-registry/config.json"
CA_FILE = "/etc/dpo-ca/ca.crt"
CLAIMS_DIR = "/claims"
CACHE_DIR = "/cache"
# Folder on the cache's claim; only this folder is mounted.
CACHE_FOLDER = "dpo-cache"
TERMINATION_LOG = "/dev/termination-log"
# In the job's folder on the volume: stacks of ranks that hung, attempt-N/rank-R.txt.
STACKS = "stacks"

# How a container learns what is not in the job file.
ENV_JOB_FILE = "DPO_JOB_FILE"
ENV_JOB_FILE_SHA256 = "DPO_JOB_FILE_SHA256"
ENV_WORK_DIR = "DPO_WORK_DIR"
ENV_ATTEMPT = "DPO_ATTEMPT"
# Number of the round that a phase is of, from 1; 0 or absent: of none.
ENV_ROUND = "DPO_ROUND"
# Number of the leg of a sweep that a training is of, or whose model is exported, from 1; 0 or absent: of none.
ENV_LEG = "DPO_LEG"
ENV_METRICS_PORT = "DPO_METRICS_PORT"
ENV_TERMINATION_LOG = "DPO_TERMINATION_LOG"
ENV_CLAIMS_DIR = "DPO_CLAIMS_DIR"
# For `dpo run`: the Python of an environment with vLLM, for jobs with iterative.generation.engine vllm.
ENV_GENERATE_PYTHON = "DPO_GENERATE_PYTHON"
ENV_CACHE_DIR = "DPO_CACHE_DIR"
ENV_TOKEN_FILE = "DPO_TOKEN_FILE"  # noqa: S105
ENV_RECORDED_CHECKPOINTS = "DPO_RECORDED_CHECKPOINTS"
ENV_CREDENTIALS_DIR = "DPO_CREDENTIALS_DIR"
ENV_REGISTRY_CONFIG = "DPO_REGISTRY_CONFIG"
ENV_CA_FILE = "DPO_CA_FILE"
ENV_MIRROR_CREDENTIALS_DIR = "DPO_MIRROR_CREDENTIALS_DIR"
# Of a prepare that looks into checkpoint.mirror for the newest checkpoint: a Restore.
ENV_RESTORE = "DPO_RESTORE"
# Of a pod that has the identity of a ServiceAccount in a cloud: "1".
ENV_IDENTITY = "DPO_IDENTITY"
# Of a training pod with GPUs that are not nvidia.com/gpu: their resource.
ENV_GPU_RESOURCE = "DPO_GPU_RESOURCE"
ENV_WANDB_KEY_FILE = "DPO_WANDB_KEY_FILE"
ENV_JUDGE_KEY_FILE = "DPO_JUDGE_KEY_FILE"

# Extended resource of the GPUs, and those that jobs may name for it without the administrator's leave.
GPU = "nvidia.com/gpu"
OTHER_GPUS = ("amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe")
GPU_RESOURCES = (GPU, *OTHER_GPUS)

METRICS_PORT = 9400
METRICS_PORT_NAME = "metrics"
MASTER_PORT = 29500


def job_of(raw: Mapping[str, Any]) -> str | None:
    """Name of the DPOJob that an object's label names; None without one or for text that can't be such a name."""
    name = (raw["metadata"].get("labels") or {}).get(LABEL_JOB) or ""
    return name if len(name) <= MAX_JOB_NAME and re.fullmatch(JOB_NAME_PATTERN, name) else None


def round_folder(number: int) -> str:
    """Folder of a round in the job's folder on the volume; empty for 0, which is no round."""
    return f"rounds/{number:04d}" if number else ""


def leg_folder(number: int) -> str:
    """Folder of a sweep's leg in the job's folder on the volume; empty for 0, which is no leg."""
    return f"legs/{number:04d}" if number else ""


def config_name(job: str, digest: str) -> str:
    """ConfigMap with a job file. digest: of the file; different specs get different names."""
    return f"{job}-config-{digest[:10]}"


def service_name(job: str) -> str:
    """Headless Service that gives the ranks their DNS names."""
    return f"{job}-train"


def budget_name(job: str) -> str:
    """PodDisruptionBudget of the training pods."""
    return f"{job}-train"


def policy_name(job: str, phase: Phase) -> str:
    """NetworkPolicy of a phase's pods; the ranks and the export pod share one."""
    return f"{job}-train" if phase == "export" else f"{job}-{phase}"


def mirror_policy_name(job: str) -> str:
    """NetworkPolicy of the pods that copy checkpoints to a mirror."""
    return f"{job}-mirror"


def push_policy_name(job: str) -> str:
    """NetworkPolicy of an export pod that pushes, in addition to that of the ranks and the export pod."""
    return f"{job}-push"


def pod_group_name(job: str) -> str:
    """PodGroup of the training pods, for schedulers that place gangs."""
    return f"{job}-train"


def volume_claim_name(job: str) -> str:
    """PersistentVolumeClaim that the operator makes when the job brings none."""
    return f"{job}-work"


def child_job_name(job: str, phase: PodKind, attempt: int) -> str:
    """batch/v1 Job of one attempt of one phase, or of one copy to a mirror."""
    return f"{job}-{phase}-{attempt}"


def master_address(job: str, attempt: int) -> str:
    """DNS name of the rank-0 pod, resolved through the namespace's search path."""
    return f"{child_job_name(job, 'train', attempt)}-0.{service_name(job)}"


class Restore(StrEnum):
    """Whose checkpoints prepare fetches from a mirror. OTHERS: a local run's of the same name, too. NOTHING: it only looks whose the mirror is."""

    OWN = "1"
    OTHERS = "others"
    NOTHING = "nothing"
