"""What must be equal for a checkpoint to belong to a job: the settings that decide which numbers come out."""

from typing import Any

from dpo_operator.api.types import DPOJobSpec

# Settings of spec.training that change speed, memory or the log, and not the result.
_NEUTRAL = frozenset(
    {"microBatchSize", "packing", "gradientCheckpointing", "zeroStage", "offload", "device", "logEverySteps"}
)


def identity(spec: DPOJobSpec, **more: str) -> dict[str, Any]:
    """Path -> value of every setting that the training depends on.

    more: digests of inputs, such as dataset=... and model=...; the names appear in error messages.
    """
    document = spec.model_dump(mode="json", by_alias=True)
    document["training"] = {key: value for key, value in document["training"].items() if key not in _NEUTRAL}
    document["training"]["learningRate"] = spec.learning_rate
    document["model"].pop("tokenSecretRef", None)
    flat: dict[str, Any] = {}
    for part in ("model", "data", "method", "adapter", "training"):
        _flatten(f"spec.{part}", document[part], flat)
    return {**flat, **more}


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Sentences about what differs; a setting that only one side knows counts when it is not empty."""
    return [
        f"{path}: the checkpoint has {saved.get(path)!r}, the job {now.get(path)!r}"
        for path in sorted(saved.keys() | now.keys())
        if saved.get(path) != now.get(path)
    ]


def _flatten(path: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _flatten(f"{path}.{key}", part, into)
    else:
        into[path] = value
