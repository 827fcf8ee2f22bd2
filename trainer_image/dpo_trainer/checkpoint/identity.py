"""Identity of a run: the settings that affect results and must match for a checkpoint to be resumed."""

from typing import Any

from dpo_operator.api.rules.resuming import NEUTRAL_TRAINING
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.checkpoint.plain_files import sanitized

_PARTS = ("model", "data", "method", "adapter", "training")


def identity(spec: DPOJobSpec, **more: str) -> dict[str, Any]:
    """Path -> value of every setting that the training depends on and that is not the default.

    more: digests of inputs, such as dataset=... and model=...; the names appear in error messages.
    Defaults are left out, so that a later version, which knows more settings, can resume from this version's checkpoints; defaults
    that depend on other settings are resolved.
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
    """One sentence for each setting that differs."""

    def value(side: dict[str, Any], path: str) -> str:
        return repr(side[path]) if path in side else "the default"

    return [
        f"{path}: the checkpoint has {value(saved, path)}, the job {value(now, path)}"
        for path in sorted(saved.keys() | now.keys())
        if value(saved, path) != value(now, path)
    ]


def mismatch_message(problems: list[str]) -> str:
    """Why a checkpoint does not belong to this job. problems: see differences. Empty without problems."""
    if not problems:
        return ""
    more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
    return f"belongs to other settings: {'; '.join(sanitized(problem) for problem in problems[:5])}{more}"


def _flatten(path: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _flatten(f"{path}.{key}", part, into)
    else:
        into[path] = value
