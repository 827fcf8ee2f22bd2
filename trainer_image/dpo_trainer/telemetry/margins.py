"""Whether a mean margin means anything: its standard error, and the note that stands beside an accuracy where it does not."""

import math
from collections.abc import Mapping
from typing import Any

from dpo_operator.api.reports import margin_note


def margin_se(metrics: Mapping[str, Any], prefix: str = "") -> float | None:
    """Standard error of the mean margin, nats: as measured, or of the pairs of this step; None where neither is known.

    metrics: TRL's keys. prefix: of the keys, such as eval_.
    """
    error, spread, pairs = (
        _number(metrics.get(prefix + key)) for key in ("rewards/margins_se", "margins_std", "pairs")
    )
    if error is None and spread is not None and pairs is not None and pairs > 1:
        error = spread / math.sqrt(pairs)
    return error


def note(metrics: Mapping[str, Any], prefix: str = "") -> str:
    """Why the accuracy beside this margin says nothing; empty where it does. metrics, prefix: as for margin_se."""
    return margin_note(_number(metrics.get(f"{prefix}rewards/margins")), margin_se(metrics, prefix))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
