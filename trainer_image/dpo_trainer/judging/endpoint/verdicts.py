"""Verdicts of an endpoint, read strictly: a text that is no verdict is never guessed at.

A verdict is the whole answer, as a JSON object or a single word or number, or a JSON object on the answer's last line, after reasons. A
number or a letter somewhere in a text is none: "Answer 2 is better than 10 others" is no score of 2.
"""

import json
from typing import Any, Literal

Winner = Literal["A", "B", "tie"]
Verdict = Winner | float

_WINNERS: dict[str, Winner] = {"a": "A", "b": "B", "tie": "tie"}
_FENCE = "```"


def winner(text: str) -> Winner | None:
    """Which answer is better by the text of a verdict; None when it says nothing that can be read."""
    found = _value(text, "winner")
    return _WINNERS.get(found.strip().lower()) if isinstance(found, str) else None


def score(text: str) -> float | None:
    """Score from 1 to 10 of a verdict; None when it says nothing that can be read."""
    found = _value(text, "score")
    if isinstance(found, str):
        found = int(found) if found.isascii() and found.isdecimal() and len(found) <= 2 else None
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if is_number and 1 <= found <= 10 else None


def _value(text: str, name: str) -> Any:
    """What the verdict says: the value of a JSON object's field, or the one word that there is."""
    text = _unfenced(text.strip())
    found = _object(text)
    if found is None:
        if len(text.split()) == 1 and not text.startswith("{"):
            return text
        found = _object(text.splitlines()[-1]) if text else None
    return None if found is None else found.get(name)


def _unfenced(text: str) -> str:
    """The text, or what a fence at its end encloses, as Markdown has it."""
    if not text.endswith(_FENCE):
        return text
    _, fence, inside = text.removesuffix(_FENCE).rpartition(_FENCE)
    return inside.removeprefix("json").strip() if fence else text


def _object(text: str) -> dict[str, Any] | None:
    """A JSON object with each field once; None for anything else."""
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is there twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
