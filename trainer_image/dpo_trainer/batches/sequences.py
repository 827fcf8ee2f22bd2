"""A packed row as the sequences that a variable-length attention kernel takes: pure functions of the pairs' lengths.

Queries stay in the order of the row: prompt and chosen answer of a pair are one sequence, its rejected answer is another. The rejected
answer's keys are those of its prompt and its own, so keys are gathered from the row once, with each shared prompt twice.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Span(NamedTuple):
    """A pair in a packed row: where it begins, and the lengths of its parts, in tokens."""

    start: int
    prompt: int
    chosen: int
    rejected: int


@dataclass(frozen=True)
class Sequences:
    """Bounds of a packed row's sequences.

    keys: int64 [gathered keys], the place in the row of each key; None when they are the row itself.
    query_bounds, key_bounds: int32 [sequences + 1], where each sequence begins among queries and among gathered keys. Queries are the
        last ones of their keys' sequence. One tensor when they are equal.
    longest_query, longest_key: tokens of the longest sequence.
    """

    keys: Tensor | None
    query_bounds: Tensor
    key_bounds: Tensor
    longest_query: int
    longest_key: int

    def to(self, device: torch.device) -> "Sequences":
        """The same on a device; on a GPU the copy, from pinned memory, may still be under way."""
        keys = None if self.keys is None else copied(self.keys, device)
        query_bounds = copied(self.query_bounds, device)
        key_bounds = query_bounds if keys is None else copied(self.key_bounds, device)
        return Sequences(keys, query_bounds, key_bounds, self.longest_query, self.longest_key)


def sequences_of(spans: tuple[Span, ...]) -> Sequences:
    """Sequences of a packed row. spans: pairs that cover the row, in its order, at least one."""
    queries, keys, places = [], [], []
    for start, prompt, chosen, rejected in spans:
        own = start + prompt + chosen
        queries.append(prompt + chosen)
        keys.append(prompt + chosen)
        places.append(np.arange(start, own))
        if rejected:
            queries.append(rejected)
            keys.append(prompt + rejected)
            places += [np.arange(start, start + prompt), np.arange(own, own + rejected)]
    bounds = _bounds(queries)
    if queries == keys:
        return Sequences(None, bounds, bounds, max(queries), max(keys))
    return Sequences(torch.from_numpy(np.concatenate(places)), bounds, _bounds(keys), max(queries), max(keys))


def _bounds(lengths: list[int]) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, by way of pinned memory if that is a GPU: there the copy does not wait for the work under way."""
    pin = device.type == "cuda"
    return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=pin)
