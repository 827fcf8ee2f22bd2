"""Which training pairs are trained on: all but some, ranked by how hard they are for the policy, or by the data's own scores."""

import math
from typing import Annotated, Literal

from pydantic import Field, StrictFloat

from dpo_operator.api.base import ApiModel

# Without warmup in the spec.
WARMUP = 0.1

Quantile = Annotated[StrictFloat, Field(ge=0, le=1)]


class Keep(ApiModel):
    """Which of the ranked pairs are kept."""

    quantiles: tuple[Quantile, ...] = Field(
        default=(0.1, 1.0),
        min_length=2,
        max_length=2,
        description="The part of the ranking that is kept: from and to, where 0 is the hardest pair and 1 the easiest. The default drops the hardest tenth, "
        "which is where wrong labels gather.",
    )


class Selection(ApiModel):
    """Train on a part of the pairs, chosen after a warm-up. Evaluation pairs are never chosen from."""

    by: Literal["rewardGap", "absoluteRewardGap", "heldOutLoss", "scoreGap"] = Field(
        description="What ranks the pairs. rewardGap: how much more the policy prefers the chosen answer than the reference does, nats per token, without "
        "beta; a small or negative one is hard. absoluteRewardGap: its size without the sign; a small one is a pair on which the policy leans to "
        "neither side. heldOutLoss: the method's loss; a large one is hard. These three are of pairs that the policy has not trained on. scoreGap: the "
        "data's score of the chosen answer minus that of the rejected one; a small one is hard.",
    )
    warmup: StrictFloat | None = Field(
        default=None,
        gt=0,
        le=0.9,
        description=f"Share of the first epoch in which random pairs are trained on, before the others are ranked; in whole steps. Default: {WARMUP}. "
        "scoreGap has none.",
    )
    keep: Keep = Field(default=Keep(), description="Which of the ranked pairs are kept.")
    order: Literal["random", "easyFirst", "hardFirst"] = Field(
        default="random", description="Order of the kept pairs in an epoch."
    )
    refresh: Literal["once", "epoch"] = Field(
        default="once",
        description="once: later epochs have the pairs of the first, with those of the warm-up. epoch: at the start of each later epoch all pairs "
        "are ranked again by the policy of that moment, which has trained on most of them.",
    )

    @property
    def has_pass(self) -> bool:
        """Whether the policy ranks the pairs, which takes a forward pass over them."""
        return self.by != "scoreGap"

    def warmup_pairs(self, pairs: int, batch: int) -> int:
        """Pairs of the warm-up, whole steps. pairs: in the data. batch: of a step."""
        if not self.has_pass:
            return 0
        share = WARMUP if self.warmup is None else self.warmup
        return min(pairs, batch * max(1, _rounded(share * math.ceil(pairs / batch))))

    def kept(self, ranked: int) -> range:
        """Places in a ranking of so many pairs, hardest first, of those that are kept."""
        low, high = self.keep.quantiles
        return range(_rounded(low * ranked), _rounded(high * ranked))

    def epoch_pairs(self, epoch: int, pairs: int, batch: int) -> int:
        """Pairs that are trained on in an epoch, counted from 0."""
        if epoch and self.refresh == "epoch":
            return len(self.kept(pairs))
        warmup = self.warmup_pairs(pairs, batch)
        return warmup + len(self.kept(pairs - warmup))

    def steps(self, epochs: float, pairs: int, batch: int) -> int:
        """Optimizer steps of so many epochs, at least one."""
        first, later = (math.ceil(self.epoch_pairs(epoch, pairs, batch) / batch) for epoch in (0, 1))
        return max(1, math.ceil(min(epochs, 1.0) * first + max(0.0, epochs - 1.0) * later))

    def passes(self, epochs: float) -> int:
        """Passes over the pairs to rank them, in so many epochs."""
        if not self.has_pass:
            return 0
        return max(1, math.ceil(epochs)) if self.refresh == "epoch" else 1

    def problem(self, pairs: int, batch: int, *, epochs: float, max_steps: int | None) -> str:
        """Why so many pairs can't be chosen from, with the way out; empty when they can."""
        warmup = self.warmup_pairs(pairs, batch)
        steps = math.ceil(warmup / batch)
        total = max_steps if max_steps is not None else self.steps(epochs, pairs, batch)
        left = pairs - warmup
        if not left:
            return f"the warm-up of {steps} step{'s' * (steps > 1)} takes all {pairs} pairs; lower warmup or training.globalBatchSize, or leave selection out"
        if not self.kept(left):
            return f"keep.quantiles leave none of the {left} pairs that are ranked; widen them"
        if total <= steps:
            return f"training ends after {total} steps, and the warm-up takes {steps}; lower warmup, or train longer"
        return ""


def _rounded(number: float) -> int:
    return math.floor(number + 0.5)
