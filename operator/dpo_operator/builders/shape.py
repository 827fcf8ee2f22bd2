"""What the pods of each phase are: which have GPUs, how many pods and GPUs, and what the judge's pod needs."""

from dpo_operator.api import names
from dpo_operator.api.base import SecretKeyRef
from dpo_operator.api.iterative import Endpoint
from dpo_operator.api.types import DPOJob

# Phases of `nodes` pods with gpusPerNode GPUs each. Those of train are one gang; those of generate know nothing of one another.
SIZED: tuple[names.PodKind, ...] = ("generate", "train")


def pod_count(job: DPOJob, phase: names.Phase) -> int:
    """Pods that a phase runs at the same time."""
    return job.spec.nodes if phase in SIZED else 1


def gpus_of(job: DPOJob, phase: names.PodKind) -> int:
    """GPUs of each pod."""
    if phase in SIZED:
        return job.spec.gpus_per_node
    rounds = job.spec.iterative
    model = rounds.judge.reward_model if rounds is not None and phase == "judge" else None
    return model.gpus if model is not None else 0


def endpoint_of(job: DPOJob, phase: names.PodKind) -> Endpoint | None:
    """The endpoint that a pod asks; None for all but a judge with one."""
    rounds = job.spec.iterative
    return rounds.judge.endpoint if rounds is not None and phase == "judge" else None


def judge_key(job: DPOJob, phase: names.PodKind) -> SecretKeyRef | None:
    """The key of that endpoint."""
    endpoint = endpoint_of(job, phase)
    return endpoint.api_key_secret_ref if endpoint is not None else None
