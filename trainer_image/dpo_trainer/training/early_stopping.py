"""Which evaluation was the best, and when to stop: pure functions of the evaluations so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpo_operator.api.training import EarlyStopping

# Evaluations, oldest first: the step after which each was made, and its cost.
Evaluations = Sequence[tuple[int, float | None]]


@dataclass(frozen=True)
class Verdict:
    """improved: the last evaluation is the best so far, by any amount. stop: the last rule.patience ones brought no progress.

    best_step: step of the last evaluation that brought progress; of the first one when none did.
    """

    improved: bool
    stop: bool
    best_step: int


def judge(evaluations: Evaluations, rule: EarlyStopping | None) -> Verdict:
    """Early-stopping verdict after one evaluation or more. A cost of None is never better than another one.

    Progress is a cost that is lower, by rule.min_delta or more, than at the last progress. So small gains accumulate.
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
