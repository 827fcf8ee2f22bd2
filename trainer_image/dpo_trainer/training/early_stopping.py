"""Which evaluation was the best, and when to stop: pure functions of the evaluations so far."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dpo_operator.api.training import EarlyStopping

# Name in the spec -> key of an evaluation's metrics, and whether more of it is better.
METRICS: dict[str, tuple[str, bool]] = {
    "eval_loss": ("loss", False),
    "eval_reward_margin": ("rewards/margins", True),
    "eval_reward_accuracy": ("rewards/accuracies", True),
}

# Evaluations, oldest first: the step after which each was made, and its cost.
Evaluations = Sequence[tuple[int, float | None]]


def cost(name: str, metrics: Mapping[str, float]) -> float | None:
    """The watched metric so that less is better; None where it is not finite, as the margin of unpaired answers."""
    key, more_is_better = METRICS[name]
    value = -metrics[key] if more_is_better else metrics[key]
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Verdict:
    """improved: the last evaluation is the best so far, by any amount. stop: the last rule.patience ones brought no progress.

    best_step: step of the last evaluation that brought progress; of the first one when none did.
    """

    improved: bool
    stop: bool
    best_step: int


def judge(evaluations: Evaluations, rule: EarlyStopping | None) -> Verdict:
    """What the evaluations so far say; at least one. A cost of None is never better than another one.

    Progress is a cost that is lower, by rule.min_delta or more, than at the last progress. So one small gain does not end
    the waiting, but many add up.
    """
    costs = [(step, math.inf if value is None else value) for step, value in evaluations]
    lowest, best_step, waited = math.inf, costs[0][0], 0
    for step, value in costs:
        waited += 1
        if value < lowest and lowest - value >= (rule.min_delta if rule else 0.0):
            lowest, best_step, waited = value, step, 0
    *earlier, (_, last) = costs
    improved = last < min((value for _, value in earlier), default=math.inf)
    return Verdict(improved, rule is not None and waited >= rule.patience, best_step)
