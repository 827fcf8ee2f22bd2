"""Fitting a pair into the limits of spec.data, once for both answers."""

from dataclasses import dataclass
from typing import Literal

Ids = list[int]


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens, as in spec.data."""

    max_length: int
    max_prompt_length: int | None
    truncation: Literal["keep_end", "keep_start", "drop"]

    def fit(self, prompt: Ids, chosen: Ids, rejected: Ids) -> bool:
        """Whether a pair needs no cut."""
        longest_prompt = self.max_length if self.max_prompt_length is None else self.max_prompt_length
        return len(prompt) <= longest_prompt and len(prompt) + max(len(chosen), len(rejected)) <= self.max_length


def truncate(prompt: Ids, chosen: Ids, rejected: Ids, limits: Limits, keep: int = 0) -> tuple[Ids, Ids, Ids] | None:
    """Truncate a pair to the limits; None when it is too long and such pairs are dropped.

    Both answers get the same prompt and the same budget. An answer that holds tokens keeps at least one of them; one that is
    too long loses its end, and EOS with it, so that stopping there is not learned.
    keep: tokens (BOS) that stay at the start of a prompt which otherwise keeps its end.
    """
    if limits.fit(prompt, chosen, rejected):
        return prompt, chosen, rejected
    if limits.truncation == "drop":
        return None
    longest = max(len(chosen), len(rejected))
    budget = limits.max_prompt_length
    if budget is None:
        budget = max(limits.max_length // 2, limits.max_length - longest)
    budget = min(budget, limits.max_length - 1)
    if len(prompt) > budget:
        if limits.truncation == "keep_start":
            prompt = prompt[:budget]
        else:
            keep = keep if budget > keep else 0
            prompt = prompt[:keep] + prompt[len(prompt) - (budget - keep) :]
    left = limits.max_length - len(prompt)
    return prompt, chosen[:left], rejected[:left]
