"""Learning rate as a function of the optimizer step, without state."""

import math
from typing import Literal


def warmup_steps(ratio: float, total_steps: int) -> int:
    """Steps of the warm-up; a part of a step counts as one, as in Hugging Face's trainer.

    A run of one step has no warm-up: its rate would be 0, and the exported model the one it began with.
    """
    return 0 if total_steps == 1 else math.ceil(ratio * total_steps)


def learning_rate(
    step: int,
    *,
    peak: float,
    total_steps: int,
    warmup: int,
    shape: Literal["cosine", "linear", "constant"],
    floor: float = 0.0,
) -> float:
    """Learning rate of one optimizer step, counted from 1.

    The same numbers as Hugging Face's get_{cosine,linear,constant}_schedule_with_warmup, whose scheduler moves on
    after each update: step 1 uses factor 0 of the warm-up, step warmup+1 the peak.
    floor: share of the peak that cosine and linear end at instead of 0.
    """
    done = step - 1
    if done < warmup:
        return peak * done / max(1, warmup)
    if shape == "constant":
        return peak
    progress = (done - warmup) / max(1, total_steps - warmup)
    left = max(0.0, 1 - progress) if shape == "linear" else max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
    return peak * (floor + (1 - floor) * left)
