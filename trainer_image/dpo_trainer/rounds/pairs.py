"""Which two answers to a prompt become a pair. Pure functions of committed answers and judgements.

Ties never train: no selection ever takes two answers of equal scores, or of which the judge named neither the better one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dpo_operator.api.iterative import PairSelection
from dpo_trainer.judging import Judged
from dpo_trainer.rounds.units import Answer

# Why a prompt gives no pair.
Reason = Literal["not_judged", "identical", "tie", "unfinished", "gap", "length"]
# Second half of the key of the numbers that choose rejected answers; the first is the seed.
_REJECTED = 0x72656A6563746564


@dataclass(frozen=True)
class Chosen:
    """A pair, by numbers of answers. gap: of their scores; None from a judge that only compares."""

    chosen: int
    rejected: int
    gap: float | None


def choose(
    answers: Sequence[Answer], judged: Judged, settings: PairSelection, *, place: Sequence[int]
) -> Chosen | Reason:
    """The pair of a prompt, or why there is none. place: seed, round and number of the prompt, which random choices depend on."""
    if len({answer.ids.tobytes() for answer in answers}) == 1:
        return "identical"
    if judged.problem:
        return "not_judged"
    candidates = _compared(judged) if judged.scores is None else _scored(answers, judged.scores, settings)
    if not candidates:
        return "tie"
    if settings.chosen_must_end:
        candidates = [one for one in candidates if answers[one.chosen].ended]
        if not candidates:
            return "unfinished"
    if judged.scores is not None:
        candidates = [one for one in candidates if one.gap is not None and one.gap > settings.min_gap]
        if not candidates:
            return "gap"
    found = _select(candidates, judged, settings, place)
    lengths = sorted(max(1, len(answers[number].ids)) for number in (found.chosen, found.rejected))
    if settings.max_length_ratio is not None and lengths[1] > settings.max_length_ratio * lengths[0]:
        return "length"
    return found


def _scored(answers: Sequence[Answer], scores: Sequence[float | None], settings: PairSelection) -> list[Chosen]:
    """Every two answers of different scores, after what their tokens cost."""
    paid = {
        number: score - settings.length_penalty * len(answers[number].ids)
        for number, score in enumerate(scores)
        if score is not None
    }
    return [
        Chosen(better, worse, paid[better] - paid[worse])
        for better in paid
        for worse in paid
        if paid[better] > paid[worse] and answers[better].ids.tobytes() != answers[worse].ids.tobytes()
    ]


def _compared(judged: Judged) -> list[Chosen]:
    """Every two answers of which the judge named the better one; best against worst first."""
    found = {(winner, a + b - winner) for a, b, winner in judged.comparisons if winner is not None}
    ends = [] if judged.best is None or judged.worst is None else [(judged.best, judged.worst)]
    return [Chosen(better, worse, None) for better, worse in [*ends, *sorted(found - set(ends))]]


def _select(candidates: Sequence[Chosen], judged: Judged, settings: PairSelection, place: Sequence[int]) -> Chosen:
    """One of the pairs that may train; there is at least one. Of equal ones the first."""
    if judged.scores is None:
        # Comparisons of a knock-out: best against worst, or what is left of them.
        best = candidates[0].chosen
        if settings.select == "bestWorst":
            return candidates[0]
        return _random([one for one in candidates if one.chosen == best], place)
    gaps = {one: one.gap or 0.0 for one in candidates}
    widest = max(candidates, key=lambda one: (gaps[one], -one.chosen, -one.rejected))
    match settings.select:
        case "bestWorst":
            return widest
        case "bestRandom":
            return _random([one for one in candidates if one.chosen == widest.chosen], place)
        case "smallestGap":
            return min(candidates, key=lambda one: (gaps[one], one.chosen, one.rejected))


def _random(candidates: Sequence[Chosen], place: Sequence[int]) -> Chosen:
    seed, round_number, prompt = place
    key, counter = [seed, _REJECTED], [0, 0, prompt, round_number]
    made = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=np.array(counter, dtype=np.uint64))
    return candidates[int(made.random_raw()) % len(candidates)]


def mixed_in(pairs: int, share: float, seed: int) -> list[int]:
    """Numbers of the pairs of data.train that the first round trains on besides its own, in their order. share: of them, 0 to 1."""
    keys = np.random.Philox(key=np.array([seed, _REJECTED], dtype=np.uint64)).random_raw(pairs)
    return sorted(np.argsort(keys, kind="stable")[: round(share * pairs)].tolist())
