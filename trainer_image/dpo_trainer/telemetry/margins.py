"""Whether a mean margin means anything: its standard error, and the note that stands beside an accuracy where it does not."""

from collections.abc import Mapping
from typing import Any

from dpo_operator.api.diagnosis import margin_note
from dpo_trainer.diagnosis.record import error_of, number


def margin_se(metrics: Mapping[str, Any], prefix: str = "") -> float | None:
    """Standard error of the mean margin, nats: as measured, or of the pairs of this step; None where neither is known.

    metrics: TRL's keys. prefix: of the keys, such as eval_.
    """
    return error_of(metrics, "rewards/margins", prefix=prefix)


def note(metrics: Mapping[str, Any], prefix: str = "") -> str:
    """Why the accuracy beside this margin says nothing; empty where it does. metrics, prefix: as for margin_se."""
    return margin_note(number(metrics, f"{prefix}rewards/margins"), margin_se(metrics, prefix))
