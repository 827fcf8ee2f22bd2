"""Which format rows have, and which columns a format reads."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats import beside, compose, paired, rated, scored, votes
from dpo_trainer.data.formats.chats import is_chat
from dpo_trainer.data.formats.pairs import Format, Unusable
from dpo_trainer.data.formats.twoscores import is_mapped, two_scores
from dpo_trainer.data.formats.values import from_text, lookup, present, text


def detect(rows: Iterable[Any], columns: Columns) -> Format | None:
    """Format that most of the given rows have; None when no row fits any.

    Rows whose values have wrong types decide only when there are no others, so that they are refused one by one.
    """
    rows = list(rows)
    for look in (looks_like, _has_columns_of):
        found = Counter(shape for row in rows if (shape := look(row, columns)) is not None)
        if found:
            return found.most_common(1)[0][0]
    return None


def looks_like(row: Any, columns: Columns) -> Format | None:
    """Format of one row; None when it fits none."""
    if not isinstance(row, Mapping):
        return None
    chosen, rejected = (lookup(row, name) for name in paired.paired_columns(row, columns))
    if chosen is not None and rejected is not None and (shape := _paired(row, columns, chosen, rejected)) is not None:
        return shape
    if is_mapped(columns) and two_scores(row, columns) is not None:
        return "scored"
    if votes.has_votes(row, columns):
        return "votes"
    if scored.has_scores(row, columns):
        return "scored"
    if len(present(row, paired.unpaired_columns(row, columns))) == 2:
        return "unpaired"
    return "rated" if rated.has_rating(row, columns) else None


def _paired(row: Mapping[str, Any], columns: Columns, chosen: Any, rejected: Any) -> Format | None:
    prompt = _prompt(row, columns)
    if any(is_chat(value) for value in (prompt, chosen, rejected)):
        return "messages"
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        return None
    if compose.are_dialogues((chosen, rejected), prompt):
        return "dialogue"
    if compose.are_turns(prompt, (chosen, rejected)):
        return "messages"
    if isinstance(prompt, str):
        return "pairs" if columns.system is None else "messages"
    return None


def _has_columns_of(row: Any, columns: Columns) -> Format | None:
    """Format whose columns a row has, whatever is in them."""
    if not isinstance(row, Mapping) or len(present(row, paired.paired_columns(row, columns))) < 2:
        return None
    return "pairs" if _prompt(row, columns) is not None else None


def _prompt(row: Mapping[str, Any], columns: Columns) -> Any:
    try:
        found = compose.find_prompt(row, columns)
    except Unusable:
        return None
    return None if found is None else found.value


# Keys under which a file holds the list of its rows.
_LISTS = ("data", "rows", "examples", "instances", "items", "samples")


def hint(rows: Iterable[Any]) -> str:
    """What stands in the way of reading rows that fit no format, where it is known; empty otherwise."""
    objects = [row for row in rows if isinstance(row, Mapping)]
    row = objects[0] if objects else {}
    for column, value in row.items():
        name = str(column)[:64]
        if isinstance(value, str):
            try:
                text(value, name)
            except Unusable as unusable:
                return unusable.rejection.detail
            if isinstance(inner := from_text(value), Mapping) and inner:
                keys = [str(key)[:64] for key in list(inner)[:8]]
                return f"{name}: text that holds an object as JSON, with {', '.join(keys)}; a name such as {name}.{keys[0]} goes into it"
        elif len(objects) == 1 and column in _LISTS and isinstance(value, list):
            return (
                f"{name}: a list of {len(value)} inside the only object; write its items themselves, one on each line"
            )
    if any(is_chat(row.get(name)) for name in paired.CONVERSATIONS):
        return (
            "the rows have one conversation each, as for supervised fine-tuning; preferences need another answer beside it, a score, or "
            "a label for kto"
        )
    return ""


def columns_read(names: Iterable[str], columns: Columns, others: Iterable[str] = ()) -> list[str]:
    """Those of a table's columns that some format may read, and others, which may be names inside objects too."""
    wanted = {value for value in columns.model_dump().values() if isinstance(value, str)} | {
        *columns.annotators,
        *others,
    }
    wanted |= {
        "prompt",
        "instruction",
        *compose.OTHER_PROMPTS,
        *compose.MEDIA,
        *beside.SYSTEM_COLUMNS,
        beside.TOOLS_COLUMN,
    }
    wanted |= scored.COLUMNS | votes.COLUMNS | paired.COLUMNS | rated.COLUMNS
    return [name for name in names if any(name == column or column.startswith(f"{name}.") for column in wanted)]
