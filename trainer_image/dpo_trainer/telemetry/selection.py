"""The metric that selects the best checkpoint."""

import math
from collections.abc import Mapping

# Name in the spec -> key of an evaluation's metrics, and whether more of it is better.
METRICS: dict[str, tuple[str, bool]] = {
    "eval_loss": ("loss", False),
    "eval_reward_margin": ("rewards/margins", True),
    "eval_reward_accuracy": ("rewards/accuracies", True),
}


def cost(name: str, metrics: Mapping[str, float]) -> float | None:
    """The watched metric so that less is better; None where it is not finite, as the margin of unpaired answers."""
    key, more_is_better = METRICS[name]
    value = -metrics[key] if more_is_better else metrics[key]
    return value if math.isfinite(value) else None
