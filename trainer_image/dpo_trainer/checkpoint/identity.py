"""What must be equal for a checkpoint to belong to a job: the settings that decide which numbers come out."""

from typing import Any

from dpo_operator.api.rules.resuming import NEUTRAL_TRAINING
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.checkpoint.plain_files import shown

_PARTS = ("model", "data", "method", "adapter", "training")


def identity(spec: DPOJobSpec, **more: str) -> dict[str, Any]:
    """Path -> value of every setting that the training depends on and that is not the default.

    more: digests of inputs, such as dataset=... and model=...; the names appear in error messages.
    Defaults are left out, so that a later version, which knows more settings, can go on from this one's checkpoints; those
    that depend on other settings are written as what they come to.
    """
    document = {part: {} for part in _PARTS} | spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    document["training"] = {key: value for key, value in document["training"].items() if key not in NEUTRAL_TRAINING}
    document["training"]["learningRate"] = spec.learning_rate
    document["method"]["beta"] = spec.method.strength
    document["model"].pop("tokenSecretRef", None)
    flat: dict[str, Any] = {}
    for part in _PARTS:
        _flatten(f"spec.{part}", document[part], flat)
    return {**flat, **more}


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Sentences about what differs."""

    def value(side: dict[str, Any], path: str) -> str:
        return repr(side[path]) if path in side else "the default"

    return [
        f"{path}: the checkpoint has {value(saved, path)}, the job {value(now, path)}"
        for path in sorted(saved.keys() | now.keys())
        if value(saved, path) != value(now, path)
    ]


def other_settings(problems: list[str]) -> str:
    """Why a checkpoint is not this job's, from what differs; empty when nothing does."""
    if not problems:
        return ""
    more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
    return f"belongs to other settings: {'; '.join(shown(problem) for problem in problems[:5])}{more}"


def _flatten(path: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _flatten(f"{path}.{key}", part, into)
    else:
        into[path] = value
