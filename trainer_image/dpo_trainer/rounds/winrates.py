"""Win rates of two policies on the same prompts. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WinRate:
    """rate: share of the prompts that the new policy wins, ties half. error: its standard error. count: prompts that were judged.

    controlled: the rate as it would be with answers of equal lengths; None where the lengths tell nothing.
    """

    rate: float
    error: float
    count: int
    controlled: float | None

    @property
    def is_worse(self) -> bool:
        """Whether it is below one half by two standard errors. One win and one loss are added, so that a few prompts that agree prove nothing."""
        wins, count = self.rate * self.count, self.count
        spread = self.error**2 * count + self.rate**2  # mean of the squares
        rate = (wins + 1) / (count + 2)
        error = math.sqrt(max(0.0, (spread * count + 1) / (count + 2) - rate**2) / (count + 2))
        return rate < 0.5 - 2 * error


def win_rate(outcomes: Sequence[float | None], lengths: Sequence[tuple[int, int]]) -> WinRate | None:
    """The win rate of outcomes, 1 for a win, 0.5 for a tie, 0 for a loss, None where nothing was judged; None without any.

    lengths: tokens of the new policy's answers and of the other's.
    """
    known = [(outcome, pair) for outcome, pair in zip(outcomes, lengths, strict=True) if outcome is not None]
    if not known:
        return None
    values = np.array([outcome for outcome, _ in known])
    longer = np.array([float(ours - theirs) for _, (ours, theirs) in known])
    rate = float(values.mean())
    return WinRate(rate, float(values.std() / math.sqrt(len(values))), len(values), length_controlled(values, longer))


def length_controlled(values: np.ndarray, longer: np.ndarray, rounds: int = 50) -> float | None:
    """Win rate at equal length: the intercept of a logistic regression on tanh of the standardised difference of lengths, as in AlpacaEval 2.

    values: outcomes, float [n]. longer: tokens by which the new answer is longer, float [n]. A weak prior of variance 100 on both numbers
    keeps them finite where the data separate. None when all differences are 0, or all outcomes the same.
    """
    spread = float(longer.std())
    if spread == 0 or float(values.std()) == 0:
        return None
    features = np.stack([np.ones_like(longer), np.tanh(longer / spread)], axis=1)
    weights, prior = np.zeros(2), np.eye(2) / 100.0
    for _ in range(rounds):
        shares = 1 / (1 + np.exp(-features @ weights))
        gradient = features.T @ (values - shares) - prior @ weights
        curvature = (features * (shares * (1 - shares))[:, None]).T @ features + prior
        step = np.linalg.solve(curvature, gradient)
        weights = weights + step
        if float(np.abs(step).max()) < 1e-10:
            break
    return float(1 / (1 + math.exp(-weights[0])))
