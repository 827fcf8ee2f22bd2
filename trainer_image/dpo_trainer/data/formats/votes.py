"""Two answers and annotators' votes: the majority's answer is chosen."""

import re
from collections.abc import Mapping
from typing import Any

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats.compose import Field, compose
from dpo_trainer.data.formats.pairs import Pair, Reason, Unusable
from dpo_trainer.data.formats.values import kind, lookup, number, present, required

# Columns of the first answer, the second one and the votes that are known when none of the three is mapped. SHP's labels
# are 1 where human_ref_A is preferred, which makes it the second one here.
_SHP = ("human_ref_B", "human_ref_A", "labels")
_KNOWN = (
    ("response_a", "response_b", "winner"),
    ("answer_a", "answer_b", "votes"),
    ("answer_a", "answer_b", "winner"),
    ("conversation_a", "conversation_b", "winner"),
    _SHP,
)
_FIRST, _SECOND = ("a", "model_a"), ("b", "model_b")
# Of response_1 and response_2, vote 1 is the first; 0 and 1 count from the first one otherwise.
_NUMBERED = re.compile(r"(.*[^0-9])([0-9]{1,9})")
# winner_model_a is 1 where the first answer won: as a vote, that would be the second.
_OF_ONE_ANSWER = re.compile(r"[^a-zA-Z][abAB]$|[a-z][AB]$")
# Without what is no letter: tie (bothbad), both_bad.
_TIES = ("tie", "draw", "equal", "both", "bothgood", "bothbad", "tiebothbad", "neither")
_VOTE_KEYS = ("vote", "winner", "choice", "preference")
# In the place of the votes' column: each annotator has one of their own.
_ANNOTATORS = "columns.annotators"
COLUMNS = frozenset(name for names in _KNOWN for name in names)


def read_votes(row: Mapping[str, Any], columns: Columns) -> Pair:
    """Pair of a row with votes. Raises Unusable."""
    names = vote_columns(row, columns)
    first, second = (Field(required(row, name), name) for name in names[:2])
    count = _count(_votes(row, columns, names), names, _numbers(names, columns))
    total = sum(count.values())
    if total <= 0:
        raise Unusable(Reason.BAD_VOTE, f"{names[2]}: no votes")
    if count["a"] == count["b"]:
        raise Unusable(Reason.TIE, f"{names[2]}: as many votes for {names[0]} as for {names[1]}")
    chosen, rejected = (first, second) if count["a"] > count["b"] else (second, first)
    agreement = (max(count["a"], count["b"]) + count["tie"] / 2) / total
    return compose(row, columns, chosen, rejected, agreement=agreement)


def has_votes(row: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a row has two answers and votes."""
    names = vote_columns(row, columns)
    if names[2] == _ANNOTATORS:
        return len(present(row, names[:2])) == 2 and bool(present(row, columns.annotators))
    return len(present(row, names)) == 3


def _votes(row: Mapping[str, Any], columns: Columns, names: tuple[str, str, str]) -> Any:
    if names[2] != _ANNOTATORS:
        return required(row, names[2])
    given = [lookup(row, name) for name in present(row, columns.annotators)]
    if not given:
        raise Unusable(Reason.MISSING_COLUMN, f"no value in columns {', '.join(columns.annotators)}")
    return given


def vote_columns(row: Mapping[str, Any], columns: Columns) -> tuple[str, str, str]:
    """Names of the columns of the first answer, the second answer and the votes."""
    wanted = (columns.answer_a, columns.answer_b, columns.votes)
    if columns.annotators:
        return (*wanted[:2], _ANNOTATORS)
    if wanted == (_SHP[1], _SHP[0], _SHP[2]):
        return _SHP
    if columns.mapped & {"answer_a", "answer_b", "votes"}:
        return wanted
    return next((names for names in (wanted, *_KNOWN) if len(present(row, names)) == 3), wanted)


def _count(value: Any, names: tuple[str, str, str], numbers: tuple[str, str] | None) -> dict[str, float]:
    """Votes for a, for b and for neither. names: columns of both answers and of the votes. numbers: see _numbers."""
    count = {"a": 0.0, "b": 0.0, "tie": 0.0}
    if isinstance(value, Mapping) and not present(value, _VOTE_KEYS):
        for key, votes in value.items():
            found = 0.0 if votes is None else number(votes)
            if found is None or found < 0:
                raise Unusable(
                    Reason.BAD_VOTE, f"{names[2]}: expected a number of votes for each answer, found {kind(votes)}"
                )
            count[_side(key, names, numbers)] += found
        return count
    for vote in value if isinstance(value, list) else [value]:
        count[_side(vote, names, numbers)] += 1
    return count


def _side(vote: Any, names: tuple[str, str, str], numbers: tuple[str, str] | None) -> str:
    """a, b or tie."""
    if isinstance(vote, Mapping):
        vote = next((lookup(vote, key) for key in present(vote, _VOTE_KEYS)), None)
    found = number(vote) if not isinstance(vote, str) else None
    word = vote.strip().lower() if isinstance(vote, str) else "" if found is None else f"{found:g}"
    if "".join(filter(str.isalpha, word)) in _TIES:
        return "tie"
    if numbers is None and word in ("0", "1", "2"):
        raise Unusable(
            Reason.BAD_VOTE,
            f"{names[2]}: found {word}, and annotators count answers from 0, or from 1 with 0 for a tie; set columns.firstVote to the number "
            f"that means {names[0]}",
        )
    if word == "0" and numbers is not None and "0" not in numbers:
        return "tie"
    if word in ("0", "1") and _OF_ONE_ANSWER.search(names[2]):
        raise Unusable(
            Reason.BAD_VOTE,
            f"{names[2]}: found {word} in a column that is named after one answer, and so may say whether that one won, not which one; "
            "name this column and the other answer's as columns.scoreA and columns.scoreB",
        )
    own_numbers = numbers or ("", "")
    for side, words, name, own in (("a", _FIRST, names[0], own_numbers[0]), ("b", _SECOND, names[1], own_numbers[1])):
        if word and (word in words or word in (name.lower(), own)):
            return side
    counted = f"{' or '.join(numbers)}, " if numbers else ""
    shown = kind(vote) if found is None else f"{found:g}; set columns.firstVote when 1 is the first answer"
    raise Unusable(
        Reason.BAD_VOTE,
        f"{names[2]}: expected a, b or tie, A or B, {counted}model_a or model_b, {names[0]} or {names[1]}; found {shown}",
    )


def _numbers(names: tuple[str, str, str], columns: Columns) -> tuple[str, str] | None:
    """What the first and the second answer are as numbers: from firstVote on, those at the ends of their columns' names, or 0 and 1.

    None for annotators when nothing says it: where several vote, 0 is often a tie.
    """
    if columns.first_vote is not None:
        return str(columns.first_vote), str(columns.first_vote + 1)
    first, second = (_NUMBERED.fullmatch(name) for name in names[:2])
    if first is None or second is None or first[1] != second[1]:
        return None if names[2] == _ANNOTATORS else ("0", "1")
    return str(int(first[2])), str(int(second[2]))
