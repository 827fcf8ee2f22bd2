"""Settings of the operator process, from environment variables."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from dpo_operator.api.allowed.allow import DEFAULT_ALLOW, Allow
from dpo_operator.api.base import ApiModel
from dpo_operator.api.quantity import to_bytes
from dpo_operator.api.text import sentences
from dpo_operator.builders.networks import CLOSED, Networks
from dpo_operator.builders.pod import TrainerImage
from dpo_operator.builders.queue import DEFAULT_SCHEDULERS, Schedulers

Model = TypeVar("Model", bound=ApiModel)
LogFormat = Literal["json", "plain"]


class ConfigError(ValueError):
    """An invalid environment variable. The message says what was expected and what was found."""


@dataclass(frozen=True)
class Election:
    """Leader election settings. seconds: approximate fail-over time."""

    namespace: str
    name: str
    identity: str
    seconds: float = 12.0


@dataclass(frozen=True)
class Config:
    """How this operator runs.

    namespaces: watched namespaces; empty means all. ports: of the operator's own pod.
    resync_seconds: between two lists of all jobs, which heal what a watch missed.
    progress_seconds: between two readings of a training job. workers: jobs that are reconciled at the same time.
    gpu_memory: bytes of each GPU in the cluster, for warnings; None: not known.
    networks: what trainer pods may reach, and who may scrape them.
    schedulers: names of gang schedulers, for jobs that ask for one.
    allow: what the administrator lets DPOJobs ask for. election: None disables leader election.
    """

    image: TrainerImage
    namespaces: tuple[str, ...] = ()
    metrics_port: int = 9400
    health_port: int = 8080
    log_format: LogFormat = "json"
    resync_seconds: float = 30.0
    progress_seconds: float = 3.0
    workers: int = 5
    gpu_memory: float | None = None
    networks: Networks = CLOSED
    schedulers: Schedulers = DEFAULT_SCHEDULERS
    allow: Allow = DEFAULT_ALLOW
    election: Election | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Config":
        """Read DPO_TRAINER_IMAGE and the optional variables. Raises ConfigError."""
        image = environment.get("DPO_TRAINER_IMAGE", "").strip()
        if not image:
            raise ConfigError("DPO_TRAINER_IMAGE: expected the trainer image, found nothing; set it on the operator")
        allow = _settings(environment, "DPO_ALLOW", Allow, {})
        return cls(
            image=TrainerImage(image, _pull_policy(environment), environment.get("DPO_GENERATE_IMAGE", "").strip()),
            namespaces=_list(environment, "WATCH_NAMESPACES"),
            metrics_port=int(_number(environment, "DPO_METRICS_PORT", 9400, 1, 65535)),
            health_port=int(_number(environment, "DPO_HEALTH_PORT", 8080, 1, 65535)),
            log_format=_log_format(environment),
            resync_seconds=_number(environment, "DPO_RESYNC_SECONDS", 30, 1, 3600),
            progress_seconds=_number(environment, "DPO_PROGRESS_SECONDS", 3, 0.5, 600),
            workers=int(_number(environment, "DPO_WORKERS", 5, 1, 256)),
            gpu_memory=_memory(environment, "DPO_GPU_MEMORY"),
            networks=_networks(environment, allow),
            schedulers=Schedulers(
                volcano=environment.get("DPO_VOLCANO_SCHEDULER", "").strip() or DEFAULT_SCHEDULERS.volcano,
                plugins=environment.get("DPO_PLUGINS_SCHEDULER", "").strip() or DEFAULT_SCHEDULERS.plugins,
                kai=environment.get("DPO_KAI_SCHEDULER", "").strip() or DEFAULT_SCHEDULERS.kai,
            ),
            allow=allow,
            election=_election(environment),
        )


def _list(environment: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in environment.get(name, "").split(",") if word.strip())


def _number(environment: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ConfigError(f"{name}: expected a number from {low:g} to {high:g}, found {text!r}")
    return value


def _memory(environment: Mapping[str, str], name: str) -> float | None:
    text = environment.get(name, "").strip()
    if not text:
        return None
    try:
        return to_bytes(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def _networks(environment: Mapping[str, str], allow: Allow) -> Networks:
    metrics = _list(environment, "DPO_METRICS_NAMESPACES")
    return _settings(
        environment, "DPO_NETWORK", Networks, {"metricsNamespaces": metrics, "unisolated": allow.unisolated}
    )


def _settings(environment: Mapping[str, str], name: str, model: type[Model], more: dict[str, Any]) -> Model:
    """Settings as a JSON object, which lists are. more: those that other variables hold."""
    text = environment.get(name, "").strip()
    try:
        return model.model_validate((json.loads(text) if text else {}) | more)
    except (ValueError, TypeError) as error:
        found = (
            "; ".join(sentences(error)) if isinstance(error, ValidationError) else f"expected a JSON object: {error}"
        )
        raise ConfigError(f"{name}: {found}") from error


def _election(environment: Mapping[str, str]) -> Election | None:
    """Enabled when POD_NAME and POD_NAMESPACE are set, unless disabled."""
    namespace, pod = (environment.get(name, "").strip() for name in ("POD_NAMESPACE", "POD_NAME"))
    match environment.get("DPO_LEADER_ELECTION", "").strip():
        case "":
            wanted = bool(namespace and pod)
        case "true":
            wanted = True
        case "false":
            wanted = False
        case other:
            raise ConfigError(f"DPO_LEADER_ELECTION: expected true or false, found {other!r}")
    if not wanted:
        return None
    if not namespace or not pod:
        raise ConfigError("DPO_LEADER_ELECTION: needs POD_NAMESPACE and POD_NAME, which are empty")
    name = environment.get("DPO_LEASE_NAME", "").strip() or "dpo-operator"
    return Election(namespace, name, pod, _number(environment, "DPO_LEASE_SECONDS", 12, 3, 300))


def _pull_policy(environment: Mapping[str, str]) -> str:
    policy = environment.get("DPO_TRAINER_IMAGE_PULL_POLICY", "").strip() or "IfNotPresent"
    if policy not in ("Always", "IfNotPresent", "Never"):
        raise ConfigError(f"DPO_TRAINER_IMAGE_PULL_POLICY: expected Always, IfNotPresent or Never, found {policy!r}")
    return policy


def _log_format(environment: Mapping[str, str]) -> LogFormat:
    match environment.get("DPO_LOG_FORMAT", "").strip() or "json":
        case "json":
            return "json"
        case "plain":
            return "plain"
        case other:
            raise ConfigError(f"DPO_LOG_FORMAT: expected json or plain, found {other!r}")
