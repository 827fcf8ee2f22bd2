"""Entropy and accuracy of a sample of token predictions: of all, and of chosen and rejected answers apart."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_trainer.losses.metrics import SIDES, Sums


def token_sums(segment: Tensor, entropy: Tensor, top1: Tensor, counts: Tensor) -> Sums:
    """Sums over sampled tokens of examples that count; float64 scalars.

    segment: int64 [tokens], see MicroBatch.scored_segment. entropy: nats. top1: 1 where the token is the most likely one. counts: bool
    [examples].
    """
    with torch.no_grad():
        answers = 2 * len(counts)
        of_prompt = segment >= answers
        counted = counts[torch.where(of_prompt, segment - answers, segment // 2)]
        side = torch.where(of_prompt, 2, segment % 2)
        where = F.one_hot(side, 3).double() * counted[:, None]
        values = torch.stack([entropy, top1, torch.ones_like(top1)])
        # NaN times 0 would be NaN, and a broken pair is left out elsewhere.
        total = torch.where(counted, values, torch.zeros_like(values)) @ where
        found: Sums = {}
        for name, row in zip(("entropy", "top1", "sampled"), total, strict=True):
            found[name] = row.sum()
            found |= {f"{name}/{side}": row[number] for number, side in enumerate(SIDES)}
        return found


def token_means(found: Mapping[str, float], *, by_side: bool) -> dict[str, float]:
    """Mean entropy, nats, and share of tokens that are the policy's most likely one; NaN without any token.

    by_side: also of chosen and rejected answers apart. Only together, entropy that falls on one side hides in the other.
    """

    def mean(name: str, suffix: str = "") -> float:
        count = found[f"sampled{suffix}"]
        return found[name + suffix] / count if count else math.nan

    values = {"entropy": mean("entropy"), "mean_token_accuracy": mean("top1")}
    if by_side:
        for side in SIDES:
            values[f"token_accuracy/{side}"] = mean("top1", f"/{side}")
            values[f"entropy/{side}"] = mean("entropy", f"/{side}")
    return values
