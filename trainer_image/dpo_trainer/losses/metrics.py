"""Logged metrics: sums over micro-batches and ranks, and their means.

The names are the keys that TRL logs, so that curves can be compared; docs/methods explains what to watch.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_operator.api.method import MethodName
from dpo_trainer.losses import formulas
from dpo_trainer.losses.objective import Logps, Objective

Sums = dict[str, Tensor]

SIDES = ("chosen", "rejected")
# Standard deviation of reward margins below which variation is rounding noise, as before the first update: float32
# log-probs of some hundred nats are good to about 1e-5.
_NOISE = 1e-5


class Totals:
    """Sums of named metrics over micro-batches, and over ranks with one reduction for all of them."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._values: Tensor | None = None

    def add(self, found: Sums, device: torch.device) -> None:
        """Add one micro-batch's sums, scalars; always the same names in the same order."""
        self._names = list(found)
        values = torch.stack([value.to(device, torch.float64) for value in found.values()])
        self._values = values if self._values is None else self._values + values

    def over_ranks(self, reduce: Callable[[Tensor], Tensor], **more: float) -> dict[str, float]:
        """The sums over all ranks by name. Collective. reduce: sums a tensor over ranks. more: this rank's other numbers."""
        assert self._values is not None, "every rank runs at least one micro-batch"
        values = torch.cat([self._values, torch.tensor(list(more.values())).to(self._values)])
        return dict(zip([*self._names, *more], reduce(values).tolist(), strict=True))


def sums(objective: Objective, logps: Logps, loss: Tensor, kl: Tensor | None, counts: Tensor) -> Sums:
    """Sums over the examples that count, float64 scalars; always the same names in the same order for one objective.

    loss: [examples]. counts: bool [examples]; dummies are False.
    """
    with torch.no_grad():
        present = logps.present & counts[:, None]
        both = present.all(dim=1)
        rewards, tokens = objective.rewards(logps).double(), logps.tokens.clamp(min=1)
        found: Sums = {"loss": masked_sum(loss, counts), "broken": (~torch.isfinite(loss) & counts).sum()}
        found["units"] = present.sum() if objective.needs_kl else counts.sum()
        for side, name in enumerate(SIDES):
            there = present[:, side]
            found[f"answers/{name}"] = there.sum()
            found[f"rewards/{name}"] = masked_sum(rewards[:, side], there)
            if not objective.method.trains_reward_model:
                found[f"logps/{name}"] = masked_sum(logps.policy[:, side], there)
            found[f"tokens/{name}"] = masked_sum(logps.tokens[:, side], there)
            if objective.needs_reference:
                found[f"logratio_per_token/{name}"] = masked_sum((logps.log_ratios / tokens)[:, side], there)
        found |= _accuracy(objective, rewards, present, both, kl)
        margin = rewards[:, 0] - rewards[:, 1]
        longer = (logps.tokens[:, 0] - logps.tokens[:, 1]).double()
        found |= {
            "moments/pairs": both.sum(), "moments/m": masked_sum(margin, both), "moments/l": masked_sum(longer, both),
            "moments/mm": masked_sum(margin * margin, both), "moments/ll": masked_sum(longer * longer, both),
            "moments/ml": masked_sum(margin * longer, both),
        }  # fmt: skip
        if objective.method.likelihood_weight > 0:
            found["nll_loss"] = masked_sum(objective.nll(logps), present[:, 0])
        if any(part.name is MethodName.ORPO for part in objective.method.losses):
            odds = formulas.log_odds_ratio(logps.policy / tokens)
            found["log_odds_ratio"] = masked_sum(F.logsigmoid(odds), both)
            found["log_odds_chosen"] = masked_sum(odds, both)
        return {name: value.double() for name, value in found.items()}


def masked_sum(values: Tensor, where: Tensor) -> Tensor:
    """Sum of the values where `where` holds, which ignores NaN elsewhere. No shape depends on data, so a GPU is never synchronized."""
    return torch.where(where, values, torch.zeros_like(values)).sum()


def _accuracy(objective: Objective, rewards: Tensor, present: Tensor, both: Tensor, kl: Tensor | None) -> Sums:
    """Examples that are ranked, and those ranked right.

    A pair is right when its chosen answer has the larger reward; a tie, as before the first update, counts as wrong. An
    unpaired answer is right when its reward is on the label's side of KTO's reference point.
    """
    alone = present & ~both[:, None]
    right = ((rewards[:, 0] > rewards[:, 1]) & both).sum()
    if kl is not None:
        point = objective.method.strength * kl
        right = right + ((rewards[:, 0] > point) & alone[:, 0]).sum() + ((rewards[:, 1] < point) & alone[:, 1]).sum()
    return {"ranked": both.sum() + alone.sum(), "right": right}


def means(found: Mapping[str, float], kl: float | None = None) -> dict[str, float]:
    """What is logged, from the sums over all micro-batches and ranks. A metric without data is NaN."""

    def mean(name: str, count: str) -> float:
        return found[name] / found[count] if found[count] else math.nan

    values = {"loss": mean("loss", "units")}
    for side in SIDES:
        values[f"rewards/{side}"] = mean(f"rewards/{side}", f"answers/{side}")
    values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
    values["rewards/accuracies"] = mean("right", "ranked")
    for side in SIDES:
        if f"logps/{side}" in found:
            values[f"logps/{side}"] = mean(f"logps/{side}", f"answers/{side}")
    for side in SIDES:
        if f"logratio_per_token/{side}" in found:
            values[f"logratio_per_token/{side}"] = mean(f"logratio_per_token/{side}", f"answers/{side}")
        values[f"response_tokens/{side}"] = mean(f"tokens/{side}", f"answers/{side}")
    values["margin_length_correlation"] = _correlation(found)
    for name, count in (
        ("nll_loss", "answers/chosen"), ("log_odds_ratio", "moments/pairs"), ("log_odds_chosen", "moments/pairs"),
    ):  # fmt: skip
        if name in found:
            values[name] = mean(name, count)
    if kl is not None:
        values["kl"] = kl
    return values


def _correlation(found: Mapping[str, float]) -> float:
    """Pearson's correlation of reward margin and length difference over pairs; NaN when either does not vary."""
    pairs = found["moments/pairs"]
    if pairs < 2:
        return math.nan
    m, length = found["moments/m"] / pairs, found["moments/l"] / pairs
    mm, ll = found["moments/mm"] / pairs - m * m, found["moments/ll"] / pairs - length * length
    if not (mm > _NOISE**2 and ll > 0):
        return math.nan
    return max(-1.0, min(1.0, (found["moments/ml"] / pairs - m * length) / math.sqrt(mm * ll)))
