"""Which answers become a pair: never a tie, never an unfinished one, and every prompt is accounted for."""

from typing import Any

import numpy as np
import pytest

from dpo_operator.api.iterative import PairSelection
from dpo_trainer.judging import Judged
from dpo_trainer.rounds.pairs import Chosen, choose, mixed_in
from dpo_trainer.rounds.units import Answer

pytestmark = pytest.mark.unit

PLACE = (0, 1, 5)


def answers(*lengths: int, ended: tuple[bool, ...] | None = None) -> list[Answer]:
    """Different answers of these lengths."""
    whole = ended or (True,) * len(lengths)
    return [
        Answer(np.full(length, 10 + i, dtype=np.int32), np.zeros(length, dtype=np.float32), end)
        for i, (length, end) in enumerate(zip(lengths, whole, strict=True))
    ]


def scored(*scores: float | None) -> Judged:
    return Judged(tuple(scores), None, None)


def pick(given: list[Answer], judged: Judged, **settings: Any) -> Any:
    return choose(given, judged, PairSelection.model_validate(settings), place=PLACE)


def test_best_and_worst_by_score():
    assert pick(answers(3, 3, 3, 3), scored(1.0, 4.0, -2.0, 0.0)) == Chosen(1, 2, 6.0)
    # One that could not be scored is neither.
    assert pick(answers(3, 3, 3), scored(None, 1.0, 0.5)) == Chosen(1, 2, 0.5)


def test_ties_never_train():
    for select in ("bestWorst", "bestRandom", "smallestGap"):
        assert pick(answers(3, 4), scored(1.0, 1.0), select=select) == "tie"
    assert pick(answers(3, 4), Judged(None, None, None, comparisons=((0, 1, None),))) == "tie"
    assert pick(answers(3, 4), scored(None, None)) == "tie"


def test_equal_answers_never_train_whatever_the_judge_says():
    same = [Answer(np.array([1, 2], dtype=np.int32), np.zeros(2, dtype=np.float32), True)] * 2
    assert pick(same, scored(1.0, 0.0)) == "identical"
    assert pick([*same, *answers(3)], scored(2.0, 0.0, 0.0)) == Chosen(0, 2, 2.0)


def test_an_unfinished_answer_is_never_chosen():
    given = answers(3, 3, 3, ended=(False, True, True))
    assert pick(given, scored(9.0, 1.0, 0.0)) == Chosen(1, 2, 1.0)
    assert pick(given, scored(9.0, 1.0, 0.0), chosenMustEnd=False) == Chosen(0, 2, 9.0)
    assert pick(answers(3, 3, ended=(False, True)), scored(9.0, 1.0)) == "unfinished"


def test_gap_length_and_what_tokens_cost():
    assert pick(answers(3, 3), scored(1.0, 0.0), minGap=1.0) == "gap"
    assert pick(answers(3, 3), scored(1.0, 0.0), minGap=0.9) == Chosen(0, 1, 1.0)
    assert pick(answers(3, 7), scored(1.0, 0.0), maxLengthRatio=2.0) == "length"
    # Four tokens more cost two points, so that the shorter one wins.
    assert pick(answers(7, 3), scored(1.0, 0.0), lengthPenalty=0.5) == Chosen(1, 0, 1.0)


def test_the_smallest_gap_that_is_large_enough():
    judged = scored(0.0, 0.2, 1.0, 5.0)
    assert pick(answers(3, 3, 3, 3), judged, select="smallestGap") == Chosen(1, 0, 0.2)
    assert pick(answers(3, 3, 3, 3), judged, select="smallestGap", minGap=0.5).gap == pytest.approx(0.8)


def test_the_best_and_a_random_one_by_the_seed():
    judged, given = scored(0.0, 0.5, 1.0, 3.0), answers(3, 3, 3, 3)
    settings = PairSelection.model_validate({"select": "bestRandom"})
    found = [choose(given, judged, settings, place=(0, 1, prompt)) for prompt in range(50)]
    assert {pair.chosen for pair in found if isinstance(pair, Chosen)} == {3}
    assert {pair.rejected for pair in found if isinstance(pair, Chosen)} == {0, 1, 2}
    assert found == [choose(given, judged, settings, place=(0, 1, prompt)) for prompt in range(50)]


def test_a_judge_that_compares():
    judged = Judged(None, 2, 1, comparisons=((0, 1, 0), (0, 2, 2)))
    given = answers(3, 3, 3, ended=(True, True, False))
    assert pick(answers(3, 3, 3), judged) == Chosen(2, 1, None)
    # What is left when the best one may not be chosen.
    assert pick(given, judged) == Chosen(0, 1, None)
    assert pick(answers(3, 3), Judged(None, None, None, problem="no verdict could be read")) == "not_judged"


def test_offline_pairs_are_drawn_by_the_seed():
    first = mixed_in(100, 0.25, seed=1)
    assert len(first) == 25
    assert first == mixed_in(100, 0.25, seed=1) != mixed_in(100, 0.25, seed=2)
    assert mixed_in(100, 1.0, seed=1) == list(range(100))
