"""Statistics of tokenized pairs.

All of it is numpy over the flat arrays, a run of tokens at a time, so memory hardly grows with the data.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dpo_trainer.data.dataset import PairDataset, TokenIds

Keys = npt.NDArray[np.uint64]

# Tokens that are processed together; each needs some 40 bytes.
RUN_TOKENS = 1 << 18
# Answers are nearly the same when their common beginning and end make up this share of the longer one, or when all but a few tokens
# of one that is not short do: a word changed.
NEARLY = 0.9
FEW_TOKENS, NOT_SHORT = 2, 8
# The largest weight that the API takes.
MOST_WEIGHT = 100.0


def describe(dataset: PairDataset, keys: Keys | None = None) -> dict[str, Any]:
    """Statistics of one split, ready for JSON; lengths in tokens, after truncation. keys: its part_keys, where they are known.

    length: of the prompts and of the answers that there are. longest: prompt and longer answer together.
    prompt_share: share of all tokens that are prompt, counted once for both answers.
    chosen_longer, chosen_shorter, same_length: shares of the pairs with two answers. Far from each other, the first two say
        that the model can win by length alone; length_baseline is the accuracy of a rule that looks at nothing else.
    length_difference, length_ratio: medians over pairs of unequal length: tokens by which the longer answer is longer, and how many
        times as long it is; None without such pairs.
    near_identical: share of the pairs with two answers that are nearly the same.
    duplicate_pairs: examples that are an exact copy of an earlier one.
    contradicting_pairs: examples of which the reverse came earlier: same prompt, answers swapped, or the other label.
    desirable, undesirable: examples with one answer.
    """
    lengths = dataset.lengths
    both = (lengths[:, 1:] > 0).all(axis=1)
    gap = (lengths[:, 1] - lengths[:, 2])[both]
    longer, shorter = float((gap > 0).sum()), float((gap < 0).sum())
    paired = len(gap)
    keys = part_keys(dataset) if keys is None else keys
    pairs = pair_keys(keys)
    total = int(lengths.sum())
    return {
        "pairs": len(dataset),
        "desirable": int((lengths[:, 1] > 0).sum()) - paired,
        "undesirable": int((lengths[:, 2] > 0).sum()) - paired,
        "tokens": total,
        "truncated": int(dataset.cut.sum()),
        "length": {
            "prompt": _spread(lengths[:, 0]),
            "chosen": _spread(lengths[lengths[:, 1] > 0, 1]),
            "rejected": _spread(lengths[lengths[:, 2] > 0, 2]),
        },
        "longest": longest(dataset),
        "prompt_share": _share(float(lengths[:, 0].sum()), total),
        "chosen_longer": _share(longer, paired),
        "chosen_shorter": _share(shorter, paired),
        "same_length": _share(paired - longer - shorter, paired),
        "length_baseline": _share(max(longer, shorter) + (paired - longer - shorter) / 2, paired),
        **_size_of_gap(lengths[both, 1:]),
        "near_identical": _share(float(_alike(dataset)[both].sum()), paired),
        "distinct_prompts": len(np.unique(keys[:, 0])),
        "duplicate_pairs": len(dataset) - len(np.unique(pairs)),
        "contradicting_pairs": _reversed_earlier(pairs, pair_keys(keys[:, [0, 2, 1]])),
    }


def longest(dataset: PairDataset) -> int:
    """Tokens of the longest sequence, prompt and longer answer together; 0 without pairs."""
    lengths = dataset.lengths
    return int((lengths[:, 0] + lengths[:, 1:].max(axis=1)).max()) if len(dataset) else 0


def overlap(train: Keys, evaluation: Keys) -> dict[str, int]:
    """Evaluation pairs that training sees too, from the part_keys of both: their scores say little about new prompts.

    prompts: those whose prompt is among the training prompts. pairs: those that are training pairs as a whole.
    """
    return {
        "prompts": int(np.isin(evaluation[:, 0], train[:, 0]).sum()),
        "pairs": int(np.isin(pair_keys(evaluation), pair_keys(train)).sum()),
    }


def kto_weights(described: Mapping[str, Any]) -> dict[str, float] | None:
    """KTO's weights for a described split: desirable, undesirable; None when all examples are pairs.

    The paper (arXiv 2402.01306, section 4.2) wants weight times number of desirable answers to be 1 to 4/3 times that of
    undesirable ones; the nearer end is taken, and the larger group keeps weight 1.
    """
    pairs = described["pairs"] - described["desirable"] - described["undesirable"]
    if pairs == described["pairs"]:
        return None
    desirable, undesirable = described["desirable"] + pairs, described["undesirable"] + pairs
    ratio = desirable / undesirable if undesirable else math.inf
    if not 0 < ratio < math.inf:
        return {"desirable": 1.0, "undesirable": 1.0}
    desirable_weight, undesirable_weight = (min(max(1.0, w), MOST_WEIGHT) for w in (1 / ratio, ratio * 3 / 4))
    return {"desirable": float(f"{desirable_weight:.3g}"), "undesirable": float(f"{undesirable_weight:.3g}")}


def part_keys(dataset: PairDataset) -> Keys:
    """A hash of each prompt, chosen and rejected, uint64 [pairs, 3]; equal tokens have equal hashes in every process.

    Not cryptographic: by chance, one of a million data sets of a million pairs has two texts with one hash.
    """
    keys = np.empty((len(dataset), 3), dtype=np.uint64)
    for start, stop in _runs(dataset):
        tokens, offsets = dataset.flat(start, stop)
        lengths = np.diff(offsets)
        places = np.arange(len(tokens), dtype=np.uint64) - np.repeat(offsets[:-1].astype(np.uint64), lengths)
        # A sum of random numbers, one for each token and place; the length tells an empty text from none.
        sums = np.zeros(len(tokens) + 1, dtype=np.uint64)
        np.cumsum(_mixed(tokens.astype(np.uint64) | places << np.uint64(32)), out=sums[1:])
        keys[start:stop] = _mixed(sums[offsets[1:]] - sums[offsets[:-1]] + lengths.astype(np.uint64)).reshape(-1, 3)
    return keys


def pair_keys(keys: Keys) -> Keys:
    """A hash of each pair as a whole, from the hashes of its parts: uint64 [pairs]."""
    return _mixed(keys[:, 0] + _mixed(keys[:, 1] + _mixed(keys[:, 2])))


def hold_out(dataset: PairDataset, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the pairs to train on and of those to evaluate on, the same for the same data and seed.

    Pairs with the same prompt stay together, so that no prompt is on both sides; a fraction of the pairs, rounded, is held
    out, or fewer where the last group does not fit.
    """
    _, first, group = np.unique(part_keys(dataset)[:, 0], return_index=True, return_inverse=True)
    # Groups are numbered as they come, so the held-out pairs do not depend on the hash.
    group = np.argsort(np.argsort(first))[group]
    sizes = np.bincount(group).tolist()
    target = round(fraction * len(dataset))
    held, taken = 0, np.zeros(len(sizes), dtype=np.bool_)
    for number in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if held + sizes[number] <= target:
            held += sizes[number]
            taken[number] = True
    return np.flatnonzero(~taken[group]).tolist(), np.flatnonzero(taken[group]).tolist()


def _runs(dataset: PairDataset) -> Iterator[tuple[int, int]]:
    """Consecutive pairs, as many as have RUN_TOKENS tokens together, and at least one."""
    ends = np.cumsum(dataset.lengths.sum(axis=1))
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + RUN_TOKENS, side="right")))
        yield start, stop
        start = stop


def _mixed(values: Keys) -> Keys:
    """The finalizer of SplitMix64 (Steele et al. 2014): bijective mixing."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64, copy=False)
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _size_of_gap(answers: npt.NDArray[Any]) -> dict[str, float | None]:
    """answers: tokens of both, [pairs, 2]."""
    shorter, longer = answers.min(axis=1), answers.max(axis=1)
    unequal = longer > shorter
    if not unequal.any():
        return {"length_difference": None, "length_ratio": None}
    shorter, longer = shorter[unequal], longer[unequal]
    return {
        "length_difference": round(float(np.median(longer - shorter)), 4),
        "length_ratio": round(float(np.median(longer / shorter)), 4),
    }


def _alike(dataset: PairDataset) -> npt.NDArray[np.bool_]:
    """Whether answers are nearly the same by their common beginning and end: [pairs]."""
    alike = np.zeros(len(dataset), dtype=np.bool_)
    for start, stop in _runs(dataset):
        tokens, offsets = dataset.flat(start, stop)
        chosen, rejected, end = offsets[1::3], offsets[2::3], offsets[3::3]
        shorter = np.minimum(rejected - chosen, end - rejected)
        longer = np.maximum(rejected - chosen, end - rejected)
        begins = _equal(tokens, chosen, rejected, shorter, 1)
        # What both begin with is not counted again from the end.
        ends = np.minimum(_equal(tokens, rejected - 1, end - 1, shorter, -1), shorter - begins)
        common = begins + ends
        one_word = (longer >= NOT_SHORT) & (longer - common <= FEW_TOKENS)
        alike[start:stop] = one_word | (common >= NEARLY * np.maximum(longer, 1))
    return alike


def _equal(
    tokens: TokenIds,
    one: npt.NDArray[np.int64],
    other: npt.NDArray[np.int64],
    most: npt.NDArray[np.int64],
    step: int,
) -> npt.NDArray[np.int64]:
    """Number of equal tokens from two places on, up to `most`, going forward (step 1) or back (-1): [pairs]."""
    begin = np.cumsum(most) - most
    place = np.arange(int(most.sum())) - np.repeat(begin, most)
    differs = tokens[np.repeat(one, most) + step * place] != tokens[np.repeat(other, most) + step * place]
    found = most.copy()
    filled = most > 0
    if filled.any():
        first = np.where(differs, place, np.iinfo(np.int64).max)
        found[filled] = np.minimum(found[filled], np.minimum.reduceat(first, begin[filled]))
    return found


def _reversed_earlier(pairs: Keys, reverse: Keys) -> int:
    """How many pairs have their reverse before them."""
    known, first = np.unique(pairs, return_index=True)
    if not len(known):
        return 0
    at = np.minimum(np.searchsorted(known, reverse), len(known) - 1)
    return int(((known[at] == reverse) & (first[at] < np.arange(len(pairs)))).sum())


def _spread(lengths: npt.NDArray[np.int64]) -> dict[str, int]:
    if len(lengths) == 0:
        return {"p50": 0, "p95": 0, "max": 0}
    p50, p95 = np.percentile(lengths, [50, 95], method="higher")
    return {"p50": int(p50), "p95": int(p95), "max": int(lengths.max())}


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
