"""Which evaluation was the best, and when to stop: pure functions of the evaluations so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dpo_operator.api.training import EarlyStopping

# Name in the spec -> key of an evaluation's metrics, and whether more of it is better.
METRICS: dict[str, tuple[str, bool]] = {
    "eval_loss": ("loss", False),
    "eval_reward_margin": ("rewards/margins", True),
    "eval_reward_accuracy": ("rewards/accuracies", True),
}

# An evaluation: the step after which it was made, and its cost.
Evaluations = Sequence[tuple[int, float]]


def cost(name: str, metrics: Mapping[str, float]) -> float:
    """The watched metric so that less is better."""
    key, more_is_better = METRICS[name]
    return -metrics[key] if more_is_better else metrics[key]


@dataclass(frozen=True)
class Verdict:
    """improved: the last evaluation is the best so far, by any amount. stop: nothing got better for `patience` evaluations.

    best_step: step of the last evaluation that was better than the one before it by min_delta or more.
    """

    improved: bool
    stop: bool
    best_step: int


def judge(evaluations: Evaluations, rule: EarlyStopping | None) -> Verdict:
    """What the evaluations so far say. evaluations: oldest first, at least one; a cost that is not finite never counts as better.

    Small gains below rule.min_delta do not end the waiting, but many of them add up: each evaluation is compared with the
    last one that was an improvement.
    """
    best = anchor = float("inf")
    best_step, waited, improved = evaluations[0][0], 0, False
    least = rule.min_delta if rule is not None else 0.0
    for step, value in evaluations:
        improved = value < best
        best = min(best, value) if value == value else best
        if value < anchor and (anchor == float("inf") or anchor - value >= least):
            anchor, best_step, waited = value, step, 0
        else:
            waited += 1
    return Verdict(improved, rule is not None and waited >= rule.patience, best_step)
