"""What one forward pass of a job holds: tokens of the largest micro-batch, and of the typical one."""

import math
from dataclasses import dataclass, replace

from dpo_operator.api.reports import TokenReport
from dpo_operator.api.training import Budget
from dpo_operator.api.types import DPOJobSpec

# Without data: prompt, chosen and rejected are each assumed to be this share of data.maxLength, so sequences are half as long as they may be.
ASSUMED_SHARE = 0.25


@dataclass(frozen=True)
class Pairs:
    """Lengths of a job's pairs, in tokens.

    prompt, chosen, rejected: means. longest: prompt and both answers of the pair that has most of them together. known: from
    data, and not assumed. count: training pairs, None where not known.
    """

    prompt: float
    chosen: float
    rejected: float
    longest: float
    known: bool
    count: int | None = None

    @classmethod
    def of(cls, spec: DPOJobSpec, found: TokenReport | None, count: int | None = None) -> "Pairs":
        """From what prepare found, else from data.maxLength."""
        if found is None:
            part = ASSUMED_SHARE * spec.data.max_length
            return cls(part, part, part, longest=2 * spec.data.max_length - part, known=False, count=count)
        return cls(found.prompt, found.chosen, found.rejected, longest=found.longest, known=True, count=count)

    def with_means(self, prompt: float | None, answer: float | None) -> "Pairs":
        """With other means; the longest pair stays unless it is shorter than the mean pair."""
        prompt = self.prompt if prompt is None else prompt
        chosen, rejected = (self.chosen, self.rejected) if answer is None else (answer, answer)
        return replace(
            self, prompt=prompt, chosen=chosen, rejected=rejected, longest=max(self.longest, prompt + chosen + rejected)
        )

    @property
    def answers(self) -> float:
        """Tokens that enter the loss, of a mean pair."""
        return self.chosen + self.rejected

    def tokens(self, layout: str) -> float:
        """Tokens that a mean pair takes as it is laid out."""
        sides = (self.chosen > 0) + (self.rejected > 0)
        if layout == "shared":
            return self.prompt + self.answers
        if layout == "plain":
            return sides * self.prompt + self.answers
        return sides * (self.prompt + max(self.chosen, self.rejected))

    def longest_tokens(self, layout: str) -> float:
        """Tokens of the longest pair as it is laid out: its prompt is assumed to be the same share as the mean pair's."""
        return self.longest * self.tokens(layout) / max(1.0, self.tokens("shared"))


def layout_of(spec: DPOJobSpec) -> str:
    """How the trainer will lay pairs out."""
    return spec.training.packing if spec.model.attention in ("auto", "sdpa", "flex") else "off"


@dataclass(frozen=True)
class Work:
    """Pairs of one forward pass on one rank. tokens: as they are laid out. pairs: how many that is, may be a fraction."""

    tokens: float
    pairs: float
    layout: str
    prompt: float
    chosen: float
    rejected: float

    @property
    def answers(self) -> float:
        """Tokens that the output layer scores."""
        return self.pairs * (self.chosen + self.rejected)


def largest(spec: DPOJobSpec, pairs: Pairs, budget: Budget, most_pairs: float) -> Work:
    """The largest micro-batch that a budget allows. most_pairs: upper bound of its pairs."""
    layout = layout_of(spec)
    long = max(1.0, pairs.longest_tokens(layout))
    most = min(most_pairs, budget.pairs or math.inf)
    tokens = max(min(budget.tokens, most * long), long)
    share = tokens / max(1.0, pairs.tokens(layout))
    # Assume longer pairs where the number of mean pairs would exceed the bound.
    stretch = max(1.0, share / most)
    return Work(tokens, share / stretch, layout, *(stretch * n for n in (pairs.prompt, pairs.chosen, pairs.rejected)))


def typical(spec: DPOJobSpec, pairs: Pairs, budget: Budget, most_pairs: float) -> Work:
    """The micro-batch of mean pairs: as many whole ones as fit."""
    layout = layout_of(spec)
    one = max(1.0, pairs.tokens(layout))
    count = max(1.0, min(most_pairs, budget.pairs or math.inf, budget.tokens // one))
    return Work(count * one, count, layout, pairs.prompt, pairs.chosen, pairs.rejected)
