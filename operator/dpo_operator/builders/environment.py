"""Environment variables of trainer containers."""

from typing import Any

from dpo_operator.api import names
from dpo_operator.api.reports import RecordedCheckpoints
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.access import has_identity, pushes_to_hub
from dpo_operator.builders.config import job_file_digest
from dpo_operator.builders.ports import ports_of
from dpo_operator.builders.shape import gpus_of, judge_key

# An emptyDir; the root file system is read-only.
TEMPORARY = "/tmp"  # noqa: S108


def literal(value: str) -> str:
    """A value with $ escaped, so that Kubernetes expands nothing: it would expand $(NAME) and read $$ as $."""
    return value.replace("$", "$$")


def _variables(pairs: dict[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in pairs.items()]


def build_environment(
    job: DPOJob,
    phase: names.PodKind,
    attempt: int,
    recorded: RecordedCheckpoints | None = None,
    number: int = 0,
) -> list[dict[str, Any]]:
    """Environment of one phase's container. Settings in the job file are not repeated.

    recorded: the checkpoints that it may use; a prepare that has any fetches the newest from the mirror. They are here because the job file is
    one for all attempts. number: of the round or leg; 0 for none.
    """
    common = {
        names.ENV_JOB_FILE: names.JOB_FILE,
        # Whoever may make ConfigMaps could put another one in the place of the job's.
        names.ENV_JOB_FILE_SHA256: job_file_digest(job),
        names.ENV_WORK_DIR: names.WORK_DIR,
        names.ENV_ATTEMPT: str(attempt),
        names.ENV_METRICS_PORT: str(ports_of(job, phase).metrics),
        names.ENV_TERMINATION_LOG: names.TERMINATION_LOG,
        # HOME is for caches of libraries.
        "HOME": TEMPORARY,
    }
    if number:
        common[names.ENV_LEG if job.spec.sweep is not None else names.ENV_ROUND] = str(number)
    gpu = job.spec.pod.gpu_resource if gpus_of(job, phase) else None
    if gpu is None or gpu in names.OTHER_GPUS:
        # Without this, an image could ask a container runtime for all GPUs of the node, including those of other pods.
        common["NVIDIA_VISIBLE_DEVICES"] = "void"
    if gpu is not None and gpu != names.GPU:
        common[names.ENV_GPU_RESOURCE] = gpu
    if has_identity(job, phase):
        common[names.ENV_IDENTITY] = "1"
    if phase == "prepare":
        restore = {} if recorded is None else {names.ENV_RESTORE: names.Restore.OWN.value, **_records(recorded)}
        return _variables(common | _prepare(job) | restore)
    if phase == "mirror":
        return _variables(common | _records(recorded))
    offline = {"HF_HUB_OFFLINE": "1"}
    offline |= _records(recorded)
    if phase == "export":
        if pushes_to_hub(job):
            del offline["HF_HUB_OFFLINE"]
        return _variables(common | offline)
    if phase == "judge":
        key = {names.ENV_JUDGE_KEY_FILE: names.JUDGE_KEY_FILE} if judge_key(job, phase) is not None else {}
        return _variables(common | offline | key)
    others = _rendezvous(job, attempt) if phase == "train" else _processes(job, job.spec.generators_per_node)
    return [
        *_variables(common | offline | others),
        {
            "name": "PET_NODE_RANK",
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{names.COMPLETION_INDEX}']"}},
        },
        *_variables({variable.name: literal(variable.value) for variable in job.spec.pod.env}),
    ]


def _records(recorded: RecordedCheckpoints | None) -> dict[str, str]:
    return {} if recorded is None else {names.ENV_RECORDED_CHECKPOINTS: recorded.model_dump_json()}


def _prepare(job: DPOJob) -> dict[str, str]:
    """Use the job's volume for downloads: a model does not fit a node's ephemeral storage."""
    variables = {
        names.ENV_CLAIMS_DIR: names.CLAIMS_DIR,
        "HF_HOME": f"{names.WORK_DIR}/.cache/huggingface",
    }
    if job.spec.cache is not None:
        variables[names.ENV_CACHE_DIR] = names.CACHE_DIR
    if job.spec.model.token_secret_ref is not None:
        variables[names.ENV_TOKEN_FILE] = names.TOKEN_FILE
    return variables


def _rendezvous(job: DPOJob, attempt: int) -> dict[str, str]:
    """torchrun's own variables; it does no restarts, because all ranks restart together as the next attempt."""
    # A single node needs no DNS.
    master = names.master_address(job.metadata.name, attempt) if job.spec.nodes > 1 else "127.0.0.1"
    return {
        **_processes(job, job.spec.processes_per_node),
        "PET_MASTER_ADDR": master,
        "PET_MASTER_PORT": str(ports_of(job).master),
        "PET_MAX_RESTARTS": "0",
        **_interface(job.spec.pod.network.interface),
    }


def _processes(job: DPOJob, each: int) -> dict[str, str]:
    """How many processes there are in all; PET_NODE_RANK tells a pod which of them are its own. each: of a pod."""
    return {"PET_NNODES": str(job.spec.nodes), "PET_NPROC_PER_NODE": str(each)}


def _interface(name: str | None) -> dict[str, str]:
    """NCCL takes names as prefixes unless told that it's the whole name; gloo takes whole names."""
    return {} if name is None else {"NCCL_SOCKET_IFNAME": f"={name}", "GLOO_SOCKET_IFNAME": name}
