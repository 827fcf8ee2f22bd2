"""Scored answers: the best is chosen, the worst rejected."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats.chats import is_chat
from dpo_trainer.data.formats.compose import Field, compose
from dpo_trainer.data.formats.pairs import Pair, Reason, Unusable
from dpo_trainer.data.formats.twoscores import COLUMNS as TWO_COLUMNS
from dpo_trainer.data.formats.twoscores import is_mapped, read_two_scores, two_scores
from dpo_trainer.data.formats.values import kind, listed, lookup, number, present, required

# Default column names: lists of answers, lists of scores, scores and texts inside an answer.
_RESPONSES = ("completions", "answers", "candidates", "generations")
_SCORES = ("ratings", "rewards", "ranks", "rank")
_SCORE_KEYS = ("score", "overall_score", "rating", "reward", "rank")
_TEXT_KEYS = ("text", "response", "content", "answer", "completion", "messages")
# Names of scores of which the lowest is the best: rank, overall_rank, humanRank, …
RANKS = re.compile(r"(^|[^a-zA-Z])[rR]ank(s|ings?)?$|[a-z]Rank(s|ings?)?$|RANK(S|INGS?)?$")
COLUMNS = frozenset((*_RESPONSES, *_SCORES)) | TWO_COLUMNS


def read_scored(row: Mapping[str, Any], columns: Columns) -> Pair:
    """Best and worst of a row's answers; the first of several that are equally good. Raises Unusable."""
    name = responses_column(row, columns)
    if (names := two_scores(row, columns)) is not None and (is_mapped(columns) or lookup(row, name) is None):
        return read_two_scores(row, columns, names)
    responses = listed(required(row, name))
    if not isinstance(responses, list):
        raise Unusable(Reason.WRONG_TYPE, f"{name}: expected a list of answers, found {kind(responses)}")
    scores_name, values = _scores(row, columns, name, responses)
    scores = [score(value, f"{scores_name} of {name}[{i}]") for i, value in enumerate(values)]
    if len(set(scores)) < 2:
        raise Unusable(
            Reason.TIE, f"{name}: {len(scores)} answers, of which no two have different scores in {scores_name}"
        )
    lowest_wins = RANKS.search(scores_name) is not None
    low, high = scores.index(min(scores)), scores.index(max(scores))
    best, worst = (low, high) if lowest_wins else (high, low)
    chosen, rejected = (_answer(responses[i], f"{name}[{i}]") for i in (best, worst))
    return compose(row, columns, chosen, rejected, score_gap=scores[high] - scores[low])


def responses_column(row: Mapping[str, Any], columns: Columns) -> str:
    """Name of the column of the answers."""
    names = (columns.responses, *(() if "responses" in columns.mapped else _RESPONSES))
    return next((name for name in present(row, names) if isinstance(listed(lookup(row, name)), list)), names[0])


def has_scores(row: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a row looks like scored answers: two columns, or a list with a score for each beside it or inside."""
    if two_scores(row, columns) is not None:
        return True
    responses = listed(lookup(row, responses_column(row, columns)))
    if not isinstance(responses, list):
        return False
    return _key_inside(responses, columns) is not None or _list_beside(row, columns) is not None


def _scores(row: Mapping[str, Any], columns: Columns, name: str, responses: Sequence[Any]) -> tuple[str, Sequence[Any]]:
    """Name of the scores, and one value for each answer."""
    if (key := _key_inside(responses, columns)) is not None:
        return key, [lookup(item, key) if isinstance(item, Mapping) else None for item in responses]
    beside = _list_beside(row, columns)
    if beside is None:
        raise Unusable(
            Reason.MISSING_COLUMN,
            f"no list of scores in column {columns.scores}, and no score of that name inside {name}",
        )
    values = listed(lookup(row, beside))
    if len(values) != len(responses):
        raise Unusable(Reason.BAD_SCORE, f"{beside}: {len(values)} scores for the {len(responses)} answers in {name}")
    return beside, values


def _key_inside(responses: Sequence[Any], columns: Columns) -> str | None:
    keys = (columns.scores, *(() if "scores" in columns.mapped else _SCORE_KEYS))
    inside = [item for item in responses if isinstance(item, Mapping)]
    return next((key for key in keys if any(lookup(item, key) is not None for item in inside)), None)


def _list_beside(row: Mapping[str, Any], columns: Columns) -> str | None:
    names = (columns.scores, *(() if "scores" in columns.mapped else _SCORES))
    return next((name for name in names if isinstance(listed(lookup(row, name)), list)), None)


def score(value: Any, name: str) -> float:
    """A finite number. name: where it stands, for the reason. Raises Unusable."""
    found = number(value)
    if found is None:
        raise Unusable(Reason.BAD_SCORE, f"{name}: expected a finite number, found {kind(value)}")
    return found


def _answer(item: Any, name: str) -> Field:
    if not isinstance(item, Mapping) or is_chat(item):
        return Field(item, name)
    keys = present(item, _TEXT_KEYS)
    if not keys:
        raise Unusable(
            Reason.WRONG_TYPE, f"{name}: expected text, messages, or an object with one of {', '.join(_TEXT_KEYS)}"
        )
    return Field(item[keys[0]], f"{name}.{keys[0]}")
