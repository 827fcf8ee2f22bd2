"""Access and type checks for values of a row."""

import ast
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from dpo_trainer.data.formats.pairs import Reason, Unusable

# How chat messages begin that a table without lists holds as text: as JSON, or as Python prints them.
_MESSAGES = re.compile(r"""\s*(\[\s*)?\{\s*["'](role|content|from|value)["']\s*:""")
_CONVERSATIONS = ("messages", "conversations", "conversation")
# Python's own parser takes a hundred times as much memory as the text that it reads.
_LONGEST_PYTHON = 1_000_000


def lookup(row: Mapping[str, Any], column: str) -> Any:
    """Value of a column, None without one.

    A dot goes into nested objects and lists, also where they are stored as JSON in text, unless a column has that very name.
    """
    if column in row or "." not in column:
        return row.get(column)
    value: Any = row
    for part in column.split("."):
        value = from_text(value)
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif part.isdecimal() and isinstance(items := objects(value), list):
            value = items[int(part)] if int(part) < len(items) else None
        else:
            return None
    return value


def required(row: Mapping[str, Any], column: str) -> Any:
    """Value of a column that must have one; `datasets` and Parquet fill columns that a row lacks with None."""
    value = lookup(row, column)
    if value is None:
        raise Unusable(Reason.MISSING_COLUMN, f"no value in column {column}")
    return value


def text(value: Any, name: str) -> str:
    """The value, which must be text. name: column, for the reason."""
    if isinstance(value, str):
        _check_plain(value, name)
        return encodable(value, name)
    hint = ""
    if isinstance(value, Mapping) and (
        keys := [str(key)[:64] for key, inner in value.items() if isinstance(inner, str)]
    ):
        hint = f" with texts in {', '.join(keys[:8])}; a name such as {name}.{keys[0]} goes into it"
        if all(key.isdecimal() for key in keys):
            hint = (
                ' of a whole column, as to_json of pandas writes it; write one object for each row (orient="records")'
            )
    raise Unusable(Reason.WRONG_TYPE, f"{name}: expected text, found {kind(value)}{hint}")


def _check_plain(value: str, name: str) -> None:
    """Refuse text in which messages are stored: trained as it stands, its brackets and keys would be the answer."""
    if _MESSAGES.match(value):
        found = "is neither JSON nor Python" if isinstance(from_text(value), str) else "holds them as JSON"
        raise Unusable(
            Reason.WRONG_TYPE,
            f"{name}: text that begins like chat messages and {found}; write the list itself, and set format to messages",
        )
    named = [key for key in _CONVERSATIONS if f'"{key}"' in value or f"'{key}'" in value]
    if named and isinstance(inner := from_text(value), Mapping):
        chats = [key for key in named if isinstance(inner.get(key), list)]
        if chats:
            keys = ", ".join(str(key)[:64] for key in list(inner)[:8])
            raise Unusable(
                Reason.WRONG_TYPE,
                f"{name}: text that holds an object as JSON, with {keys}; a name such as {name}.{chats[0]} goes into it",
            )


def from_text(value: Any) -> Any:
    """The list or object that a text holds as JSON or as Python prints it; any other value as it is."""
    if (
        not isinstance(value, str)
        or not value.lstrip().startswith(("[", "{"))
        or not value.rstrip().endswith(("]", "}"))
    ):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = _from_python(value)
    return found if isinstance(found, list | Mapping) else value


def _from_python(value: str) -> Any:
    if len(value) > _LONGEST_PYTHON:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def messages_of(value: Any) -> Any:
    """Chat messages, also where they are stored as text or as an object of lists; any other value as it is."""
    return objects(from_text(value) if isinstance(value, str) and _MESSAGES.match(value) else value)


def listed(value: Any) -> Any:
    """A list, also where it is stored as text or as an object of lists; any other value as it is."""
    found = objects(value) if not isinstance(value, str) else from_text(value)
    return found if isinstance(found, list) else value


def encodable(value: str, name: str) -> str:
    """The text itself. NUL and other control characters stay; half a surrogate pair is no text and can't be encoded."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unusable(Reason.INVALID_TEXT, f"{name}: the text holds half a surrogate pair") from None
    return value


def number(value: Any) -> float | None:
    """A finite number, or text that spells one; None for anything else, booleans too."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def objects(value: Any) -> Any:
    """A list of objects that was stored as an object of lists, as `datasets` does; any other value as it is."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(column, list) for column in value.values()):
        return value
    if len({len(column) for column in value.values()}) > 1:
        return value
    return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]


def present(row: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    """The columns that have a value in this row."""
    return [column for column in columns if lookup(row, column) is not None]


def kind(value: Any) -> str:
    """JSON name of a value's type."""
    if value is None:
        return "null"
    names = ((bool, "a boolean"), (int | float, "a number"), (str, "text"), (list, "a list"), (Mapping, "an object"))
    return next((name for kind, name in names if isinstance(value, kind)), type(value).__name__)
