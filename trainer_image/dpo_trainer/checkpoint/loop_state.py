"""State of the training loop in a checkpoint's manifest, and the metrics beside it."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

# JSON integers above 2^53 lose precision in some readers.
Count = Annotated[int, Field(ge=0, le=2**53)]

Precision = Literal["bf16", "fp16", "fp32"]

# Key of LoopState.selection_cost in Manifest.metrics.
SELECTION = "selection"


class Part(BaseModel):
    """A part of the manifest: immutable, without unknown keys, NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Probe(Part):
    """Log-probs of a few pairs under the saved weights; the export compares them with those of the exported model.

    pairs: indices in the split. logps: (chosen, rejected) of each pair, nats; None if not finite.
    """

    split: Literal["train", "eval"]
    pairs: tuple[Count, ...]
    logps: tuple[tuple[float | None, float | None], ...]
    precision: Precision

    @classmethod
    def of(
        cls,
        split: Literal["train", "eval"],
        pairs: Sequence[int],
        logps: Sequence[Sequence[float]],
        precision: Precision,
    ) -> "Probe":
        """A probe from log-probs that may not be finite. logps: (chosen, rejected) of each pair."""
        known = tuple((_finite(chosen), _finite(rejected)) for chosen, rejected in logps)
        return cls(split=split, pairs=tuple(pairs), logps=known, precision=precision)


class LossScaleState(Part):
    """State of engine.loss_scale.LossScale."""

    factor: float
    updates: Count
    overflows: Count


class LoopState(Part):
    """Everything the training loop needs to resume, except tensors.

    version: of these fields; not written while it is 1. A reader refuses versions and keys that it does not know.
    epoch: passes over the training pairs. train: metrics of the step, None where not finite, with TRL's keys.
    eval: the same of the evaluation after the step, None without one.
    evaluations: (step, cost) of every evaluation of the run; less is better, None is not finite.
    skipped: steps left out by training.nonFinite, in the order in which they failed.
    finished: how the run ended, empty before its end. loss_scale: for fp16 only.
    selected: digest of the list of pairs that the step's epoch uses; None in a warm-up and without training.selection.
    probe: only with an evaluation or at the end of the run.
    """

    version: Literal[1] = 1
    step: Count
    epoch: float
    pairs_seen: Count
    total_steps: Count
    train: dict[str, float | None]
    eval: dict[str, float | None] | None
    evaluations: tuple[tuple[Count, float | None], ...]
    # The first images of format 1 did not write this key.
    skipped: tuple[Count, ...] = ()
    selection_metric: str
    finished: str
    loss_scale: LossScaleState | None = None
    selected: str | None = None
    probe: Probe | None = None

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on so far."""
        return int(self.train.get("num_tokens") or 0)

    @property
    def selection_cost(self) -> float | None:
        """Cost of this step's evaluation, by which the best checkpoint is chosen; None without one."""
        return self.evaluations[-1][1] if self.eval is not None else None

    def metrics(self) -> dict[str, float | None]:
        """The manifest's own metrics."""
        return {SELECTION: self.selection_cost, "loss": self.train["loss"]}

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out optional parts, as format 1 always did."""
        document: dict[str, Any] = handler(self)
        unset = {"version": 1, "loss_scale": None, "selected": None, "probe": None}
        return {key: value for key, value in document.items() if key not in unset or value != unset[key]}


def finite(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Metrics for JSON, which has no NaN: None where there is no finite number."""
    return {key: _finite(value) for key, value in metrics.items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
