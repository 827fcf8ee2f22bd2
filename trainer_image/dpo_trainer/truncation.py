"""Fitting a pair into the limits of spec.data, once for both answers."""

from dataclasses import dataclass
from typing import Literal

Ids = list[int]


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens, as in spec.data."""

    max_length: int
    max_prompt_length: int | None
    truncation: Literal["keep_end", "keep_start"]


def truncate(prompt: Ids, chosen: Ids, rejected: Ids, limits: Limits, keep: int = 0) -> tuple[Ids, Ids, Ids]:
    """The pair within the limits. Both answers get the same prompt and the same room, and at least one token.

    An answer that is too long loses its end, and EOS with it, so that stopping there is not learned.
    keep: tokens (BOS) that stay at the start of a prompt which otherwise keeps its end.
    """
    longest = max(len(chosen), len(rejected))
    room = limits.max_prompt_length
    if room is None:
        room = max(limits.max_length // 2, limits.max_length - longest)
    room = min(room, limits.max_length - 1)
    if len(prompt) > room:
        if limits.truncation == "keep_start":
            prompt = prompt[:room]
        else:
            keep = keep if room > keep else 0
            prompt = prompt[:keep] + prompt[len(prompt) - (room - keep) :]
    left = limits.max_length - len(prompt)
    return prompt, chosen[:left], rejected[:left]
