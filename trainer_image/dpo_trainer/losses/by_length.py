"""Reward accuracy by answer length, and the accuracy of a rule that knows the lengths alone."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dpo_trainer.losses.metrics import Sums
from dpo_trainer.losses.objective import Logps

# Upper bounds, in tokens of a pair's longer answer.
BOUNDS = (64, 256, 1024)
NAMES = (*(f"le_{bound}" for bound in BOUNDS), f"gt_{BOUNDS[-1]}")


def bucket_sums(logps: Logps, rewards: Tensor, counts: Tensor) -> Sums:
    """Pairs and right pairs of each bucket, and pairs whose chosen answer is the longer one; float64 scalars.

    rewards: [examples, 2]. counts: bool [examples]. Unpaired examples are excluded.
    """
    with torch.no_grad():
        both = logps.present.all(dim=1) & counts
        right = (rewards[:, 0] > rewards[:, 1]) & both
        bucket = torch.bucketize(logps.tokens.amax(dim=1), torch.tensor(BOUNDS, device=counts.device))
        found: Sums = {}
        for number, name in enumerate(NAMES):
            here = bucket == number
            found[f"pairs/{name}"], found[f"right/{name}"] = (both & here).sum(), (right & here).sum()
        found["longer"] = ((logps.tokens[:, 0] > logps.tokens[:, 1]) & both).sum()
        found["as_long"] = ((logps.tokens[:, 0] == logps.tokens[:, 1]) & both).sum()
        return {name: value.double() for name, value in found.items()}


def bucket_means(found: Mapping[str, float]) -> dict[str, float]:
    """Accuracy of each bucket that has pairs, and of the better of two rules: always the longer, always the shorter answer.

    Under both rules an equal length is a guess, right half of the time.
    """
    values = {
        f"rewards/accuracies/{name}": found[f"right/{name}"] / found[f"pairs/{name}"]
        for name in NAMES
        if found[f"pairs/{name}"]
    }
    pairs = sum(found[f"pairs/{name}"] for name in NAMES)
    longer = (found["longer"] + found["as_long"] / 2) / pairs if pairs else math.nan
    return {**values, "length_baseline_accuracy": max(longer, 1 - longer)}
