"""Which pairs go through the model together: pure functions of their lengths.

Under ZeRO-3 all ranks pass through each layer at the same time, so every rank runs equally many bins, and the bins that run at the
same time are about equally large.
"""

import heapq
import math

import numpy as np

from dpo_operator.api.training import Budget
from dpo_trainer.batches.batch import Layout
from dpo_trainer.batches.sampler import Indices, Lengths

# One round: each rank's micro-batch, as indices of its pairs; empty when that rank has run out.
Round = list[Indices]


def tokens_of(lengths: Lengths, layout: Layout) -> Lengths:
    """Tokens that each pair takes when it is alone: int64 [pairs].

    lengths: int64 [pairs, 3], of prompt, chosen and rejected answer; 0 where an unpaired example has none.
    """
    prompt, answers = lengths[:, 0], lengths[:, 1:]
    sides: Lengths = (answers > 0).sum(axis=1)
    tokens: Lengths
    if layout == "shared":
        tokens = prompt + answers.sum(axis=1)
    elif layout == "plain":
        tokens = prompt * sides + answers.sum(axis=1)
    else:
        tokens = (prompt + answers.max(axis=1)) * sides
    return tokens


def rounds(indices: Indices, lengths: Lengths, *, layout: Layout, budget: Budget, world_size: int) -> list[Round]:
    """Spread pairs over bins, and bins over ranks and time; the largest bins come first.

    indices: which pairs. lengths: of all pairs of the dataset, see tokens_of. A pair over the budget has a bin of its own.
    """
    order = np.argsort(-tokens_of(lengths[indices], layout), kind="stable")
    by_size = indices[order]
    if layout == "off":
        bins = _length_sorted(lengths[by_size], budget)
    else:
        bins = _balanced(tokens_of(lengths[by_size], layout), budget, world_size)
    groups = [by_size[np.array(members, dtype=np.int64)] for members in bins]
    groups += [by_size[:0]] * (-len(groups) % world_size)
    return [groups[i : i + world_size] for i in range(0, len(groups), world_size)]


def _balanced(costs: Lengths, budget: Budget, world_size: int) -> list[list[int]]:
    """Bins with about equal tokens, each within the budget, as few as that takes and a multiple of the world size.

    costs: int64 [pairs], falling. The next largest pair always goes into the emptiest bin; the fullest one is then at most
    a third above the best possible (Graham 1969, longest processing time first).
    Returns places in costs, the bin with the most tokens first.
    """
    most = budget.pairs or len(costs)
    wanted = max(math.ceil(int(np.minimum(costs, budget.tokens).sum()) / budget.tokens), math.ceil(len(costs) / most))
    while True:
        count = math.ceil(wanted / world_size) * world_size
        bins: list[list[int]] = [[] for _ in range(count)]
        emptiest = [(0, number) for number in range(count)]
        fits = True
        for place, cost in enumerate(costs.tolist()):
            load, number = heapq.heappop(emptiest)
            fits = load == 0 or load + cost <= budget.tokens
            if not fits:
                break
            bins[number].append(place)
            if len(bins[number]) < most:
                heapq.heappush(emptiest, (load + cost, number))
        if fits:
            loads = [int(costs[members].sum()) for members in bins]
            return [bins[i] for i in sorted(range(count), key=lambda i: -loads[i]) if bins[i]]
        wanted = count + max(1, count // 16)


def _length_sorted(lengths: Lengths, budget: Budget) -> list[list[int]]:
    """Bins of rows that are padded to their longest: neighbours by length, within the budget with the padding."""
    bins: list[list[int]] = []
    rows = longest = 0
    for place, (prompt, chosen, rejected) in enumerate(lengths.tolist()):
        sides, length = (chosen > 0) + (rejected > 0), prompt + max(chosen, rejected)
        fits = bins and max(longest, length) * (rows + sides) <= budget.tokens
        if fits and len(bins[-1]) < (budget.pairs or len(lengths)):
            bins[-1].append(place)
            rows, longest = rows + sides, max(longest, length)
        else:
            bins.append([place])
            rows, longest = sides, length
    return bins
