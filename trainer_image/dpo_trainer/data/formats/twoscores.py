"""Two answers in columns of their own with a score each, or with one signed number that says which is better."""

from collections.abc import Mapping
from typing import Any

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats.compose import Field, compose
from dpo_trainer.data.formats.pairs import Pair, Reason, Unusable
from dpo_trainer.data.formats.values import kind, number, present, required

# Columns of both answers, and of their scores or of the signed number, that are known when none of them is mapped: WebGPT's
# comparisons, the arena's votes as one column for each winner, HelpSteer2 and HelpSteer3.
_KNOWN = (
    ("answer_0", "answer_1", "score_0", "score_1"),
    ("response_a", "response_b", "winner_model_a", "winner_model_b"),
    ("response_1", "response_2", "preference_strength"),
    ("response1", "response2", "overall_preference"),
)
_MAPPABLE = frozenset({"answer_a", "answer_b", "score_a", "score_b", "signed_preference"})
COLUMNS = frozenset(name for names in _KNOWN for name in names)


def two_scores(row: Mapping[str, Any], columns: Columns) -> tuple[str, ...] | None:
    """Names of the columns of both answers and of what compares them; None when the row has no such columns."""
    compared = (columns.score_a, columns.score_b) if columns.signed_preference is None else (columns.signed_preference,)
    wanted = (columns.answer_a, columns.answer_b, *compared)
    choices = (wanted,) if columns.mapped & _MAPPABLE else (wanted, *_KNOWN)
    fits = (names for names in choices if len(present(row, names[:2])) == 2 and present(row, names[2:]))
    return next(fits, None)


def is_mapped(columns: Columns) -> bool:
    """Whether the columns that compare the answers are named, and votes are ignored then."""
    return bool(columns.mapped & {"score_a", "score_b", "signed_preference"})


def read_two_scores(row: Mapping[str, Any], columns: Columns, names: tuple[str, ...]) -> Pair:
    """Pair of a row; names as two_scores gives them. Raises Unusable."""
    first, second = (Field(required(row, name), name) for name in names[:2])
    scores = [_score(row, name) for name in names[2:]]
    gap = -scores[0] if len(scores) == 1 else scores[0] - scores[1]
    if gap == 0:
        raise Unusable(Reason.TIE, f"{' and '.join(names[2:])}: neither answer is better")
    chosen, rejected = (first, second) if gap > 0 else (second, first)
    return compose(row, columns, chosen, rejected, score_gap=abs(gap))


def _score(row: Mapping[str, Any], name: str) -> float:
    value = required(row, name)
    found = number(value)
    if found is None:
        raise Unusable(Reason.BAD_SCORE, f"{name}: expected a finite number, found {kind(value)}")
    return found
