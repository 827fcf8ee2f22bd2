"""One answer and its score in each row: of the rows of one prompt, which follow each other, the best and the worst answer are a pair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats.compose import Field, check_answers, compose
from dpo_trainer.data.formats.pairs import ChatPair, Pair, Reason, TextPair, Unusable
from dpo_trainer.data.formats.scored import RANKS, score
from dpo_trainer.data.formats.values import lookup, number, present, required

# Columns of the answer and of its score that are known when they are not mapped.
_ANSWERS = ("response", "messages", "answer", "output")
_SCORES = ("score", "overall_score", "rating", "reward", "helpfulness", "rank")
COLUMNS = frozenset((*_ANSWERS, *_SCORES))


@dataclass(frozen=True)
class Rated:
    """An answer with its score. pair: its prompt, with the answer as chosen."""

    pair: Pair
    score: float
    lowest_wins: bool


def rated_columns(row: Mapping[str, Any], columns: Columns) -> tuple[str, str]:
    """Names of the columns of the answer and of its score."""
    answers = (columns.completion, *(() if "completion" in columns.mapped else _ANSWERS))
    scores = (columns.scores, *(() if "scores" in columns.mapped else _SCORES))
    answer, rating = (next(iter(present(row, names)), names[0]) for names in (answers, scores))
    return answer, rating


def has_rating(row: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a row looks like one answer with its score."""
    answer, rating = rated_columns(row, columns)
    return lookup(row, answer) is not None and number(lookup(row, rating)) is not None


def read_rated(row: Mapping[str, Any], columns: Columns) -> Rated:
    """The answer of a row. Raises Unusable."""
    answer, rating = rated_columns(row, columns)
    pair = compose(row, columns, Field(required(row, answer), answer), None)
    return Rated(pair, score(required(row, rating), rating), RANKS.search(rating) is not None)


def best_and_worst(answers: Sequence[Rated]) -> Pair:
    """The pair of the answers to one prompt; the first of several that are equally good. Raises Unusable."""
    if len(answers) == 1:
        raise Unusable(Reason.SINGLE_ANSWER, "the rows beside this one have other prompts")
    low = min(answers, key=lambda rated: rated.score)
    high = max(answers, key=lambda rated: rated.score)
    if low.score == high.score:
        raise Unusable(Reason.TIE, f"{len(answers)} answers to one prompt, of which no two have different scores")
    best, worst = (low.pair, high.pair) if high.lowest_wins else (high.pair, low.pair)
    check_answers(best.chosen, worst.chosen)
    gap = high.score - low.score
    if isinstance(best, ChatPair):
        assert isinstance(worst, ChatPair)  # as both have one prompt
        return replace(best, rejected=worst.chosen, score_gap=gap)
    assert isinstance(worst, TextPair)
    return replace(best, rejected=worst.chosen, score_gap=gap)
