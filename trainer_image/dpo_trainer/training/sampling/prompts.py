"""Which prompts are answered, and by which rank. Pure functions."""

import math

from dpo_trainer.batches.sampler import Indices
from dpo_trainer.data.dataset import PairDataset, TokenPair


def first_prompts(data: PairDataset, count: int, *, longest: float) -> list[TokenPair]:
    """The first pairs with a prompt of their own that is not too long."""
    found: dict[bytes, TokenPair] = {}
    for index in range(len(data)):
        if len(found) == count:
            break
        pair = data[index]
        if len(pair.prompt) <= longest:
            found.setdefault(pair.prompt.tobytes(), pair)
    return list(found.values())


def shares(indices: Indices, *, rank: int, world_size: int, size: int) -> list[Indices]:
    """One rank's share of some prompts, in groups of at most `size`.

    Every rank gets a list of the same length, because ZeRO-3's gathers are collective: a rank with fewer groups gets
    empty ones at the end, for which the caller runs a dummy.
    """
    mine = indices[rank::world_size]
    groups = math.ceil(math.ceil(len(indices) / world_size) / size)
    return [mine[i * size : (i + 1) * size] for i in range(groups)]
