"""What scores say, and the counts that a round's figures are made of."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_trainer.judging import Question, Tally, by_scores

pytestmark = pytest.mark.unit


def question(*tokens: int) -> Question:
    return Question("Say it.", tuple(f"answer {number}" for number in range(len(tokens))), tokens)


def test_the_highest_score_is_best_and_the_lowest_worst() -> None:
    judged = by_scores(question(5, 6, 7), [0.5, 2.0, -1.0])
    assert (judged.best, judged.worst, judged.scores) == (1, 2, (0.5, 2.0, -1.0))
    assert judged.tally == Tally(decided=1, longer_wins=0)


def test_equal_scores_are_a_tie() -> None:
    judged = by_scores(question(5, 6), [1.0, 1.0])
    assert (judged.best, judged.worst, judged.problem) == (None, None, "")
    assert judged.tally == Tally()


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, None])
def test_what_is_no_number_is_no_score(score: float | None) -> None:
    judged = by_scores(question(5, 6, 7), [score, 2.0, 1.0])
    assert (judged.best, judged.worst) == (1, 2)
    assert judged.scores == (None, 2.0, 1.0)
    nothing = by_scores(question(5, 6), [score, score])
    assert (nothing.best, nothing.worst, nothing.problem) == (None, None, "no answer could be scored")


@given(st.lists(st.floats(-10, 10, width=16), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_answers_changes_nothing(scores: list[float], random: object) -> None:
    order = list(range(len(scores)))
    random.shuffle(order)  # type: ignore[attr-defined]
    there, shuffled = by_scores(question(*range(len(scores))), scores), [scores[number] for number in order]
    again = by_scores(question(*order), shuffled)
    if there.best is None:
        assert again.best is None
    else:
        assert scores[there.best] == shuffled[again.best or 0]
        assert scores[there.worst or 0] == shuffled[again.worst or 0]


def test_tallies_add_up_and_shares_need_something_to_share() -> None:
    total = sum(
        [Tally(calls=2, both_orders=1, same_in_both=1), Tally(both_orders=1, decided=4, longer_wins=3)], Tally()
    )
    assert (total.calls, total.order_agreement, total.longer_wins_share) == (2, 0.5, 0.75)
    assert (Tally().order_agreement, Tally().longer_wins_share) == (None, None)
