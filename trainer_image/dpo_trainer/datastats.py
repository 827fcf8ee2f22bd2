"""Numbers about tokenized pairs that tell a person whether the data are what they think."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from dpo_trainer.dataset import IntArray, PairDataset


def describe(dataset: PairDataset) -> dict[str, Any]:
    """Statistics of one split, ready for JSON; lengths in tokens, after truncation.

    chosen_longer: share of pairs whose chosen answer has more tokens. Far from 0.5, the model can win by length alone.
    duplicate_pairs: pairs that are an exact copy of an earlier one.
    contradicting_pairs: pairs of which the reverse (same prompt, answers swapped) came earlier.
    """
    lengths = dataset.lengths
    parts = {name: _spread(lengths[:, i]) for i, name in enumerate(("prompt", "chosen", "rejected"))}
    longer, shorter = lengths[:, 1] > lengths[:, 2], lengths[:, 1] < lengths[:, 2]
    seen: set[bytes] = set()
    duplicates = contradictions = 0
    for i in range(len(dataset)):
        pair = dataset[i]
        prompt, chosen, rejected = _hash(pair.prompt), _hash(pair.chosen), _hash(pair.rejected)
        duplicates += prompt + chosen + rejected in seen
        contradictions += prompt + rejected + chosen in seen
        seen.add(prompt + chosen + rejected)
    return {
        "pairs": len(dataset),
        "tokens": int(lengths.sum()),
        "length": parts,
        "longest": longest(dataset),
        "chosen_longer": round(float(longer.mean()), 4) if len(dataset) else None,
        "chosen_shorter": round(float(shorter.mean()), 4) if len(dataset) else None,
        "duplicate_pairs": duplicates,
        "contradicting_pairs": contradictions,
    }


def longest(dataset: PairDataset) -> int:
    """Tokens of the longest sequence, prompt and longer answer together; 0 without pairs."""
    lengths = dataset.lengths
    return int((lengths[:, 0] + lengths[:, 1:].max(axis=1)).max()) if len(dataset) else 0


def prompt_keys(dataset: PairDataset) -> Iterator[bytes]:
    """A short hash of each pair's prompt tokens."""
    return (_hash(dataset[i].prompt) for i in range(len(dataset)))


def shared_prompts(train: PairDataset, evaluation: PairDataset) -> int:
    """Evaluation pairs whose prompt is among the training prompts: their scores say little about new prompts."""
    known = set(prompt_keys(train))
    return sum(key in known for key in prompt_keys(evaluation))


def hold_out(dataset: PairDataset, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the pairs to train on and of those to evaluate on, the same for the same data and seed.

    Pairs with the same prompt stay together, so that no prompt is on both sides; a fraction of the pairs, rounded, is held
    out, or fewer where the last group does not fit.
    """
    groups: dict[bytes, list[int]] = {}
    for i, key in enumerate(prompt_keys(dataset)):
        groups.setdefault(key, []).append(i)
    members = list(groups.values())
    target = round(fraction * len(dataset))
    held: set[int] = set()
    for number in np.random.default_rng(seed).permutation(len(members)):
        if len(held) + len(members[number]) <= target:
            held.update(members[number])
    return [i for i in range(len(dataset)) if i not in held], sorted(held)


def _spread(lengths: Any) -> dict[str, int]:
    if len(lengths) == 0:
        return {"p50": 0, "p95": 0, "max": 0}
    p50, p95 = np.percentile(lengths, [50, 95], method="higher")
    return {"p50": int(p50), "p95": int(p95), "max": int(lengths.max())}


def _hash(tokens: IntArray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(tokens).tobytes(), digest_size=16).digest()
