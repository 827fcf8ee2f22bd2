"""What a row has beside its prompt and answers: a system message and tools, for chat messages alone."""

from collections.abc import Mapping
from typing import Any

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats.chats import conversation, is_chat, tools_of
from dpo_trainer.data.formats.pairs import Reason, Unusable
from dpo_trainer.data.formats.values import from_text, lookup, objects, text

# Columns of a system message, and of tools, that are known when none is mapped.
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message", "system_instruction")
TOOLS_COLUMN = "tools"


def system_of(row: Mapping[str, Any], columns: Columns) -> tuple[str, str] | None:
    """Text of a row's system message and the name of its column: the mapped one, or a known one with a value. Raises Unusable."""
    name = _system_column(row, columns)
    if name is None or (value := lookup(row, name)) is None:
        return None
    if not is_chat(value):
        return text(value, name), name
    messages = conversation(value, name, "system")
    if [message.role for message in messages] != ["system"]:
        roles = ", ".join(message.role[:64] for message in messages)
        raise Unusable(
            Reason.MALFORMED_MESSAGES,
            f"{name}: expected text or one message of role system, found {len(messages)} of role {roles}; change the role, or set "
            f"ignoreColumns to [{name}]",
        )
    return messages[0].content, name


def tools_beside(row: Mapping[str, Any], columns: Columns) -> tuple[Mapping[str, Any], ...]:
    """Tools that a row offers. Raises Unusable."""
    name = _tools_column(row, columns)
    return () if name is None else tools_of(lookup(row, name), name)


def check_unread(row: Mapping[str, Any], columns: Columns) -> None:
    """Refuse a system message or tools beside plain text, which gets no chat template. Raises Unusable."""
    system, tools = _system_column(row, columns), _tools_column(row, columns)
    if system is not None and lookup(row, system):
        raise Unusable(
            Reason.UNREAD_COLUMN,
            f"{system}: a system message beside plain text, which has no place for it; set columns.system to {system}, which makes "
            f"messages of prompt and answers, or ignoreColumns to [{system}]",
        )
    if tools is not None and _offers(lookup(row, tools), is_mapped=columns.tools is not None):
        raise Unusable(
            Reason.UNREAD_COLUMN,
            f"{tools}: tools beside plain text, which has no place for them; set format to messages, or ignoreColumns to [{tools}]",
        )


def _offers(value: Any, *, is_mapped: bool) -> bool:
    """Whether a value is one of tools. is_mapped: the user says so of the column; else other text in it is something else."""
    found = objects(from_text(value))
    return bool(found.strip() if isinstance(found, str) else found) and (is_mapped or isinstance(found, list | Mapping))


def _system_column(row: Mapping[str, Any], columns: Columns) -> str | None:
    if columns.system is not None:
        return columns.system
    return next((name for name in SYSTEM_COLUMNS if row.get(name) and not _is_mapped(name, columns)), None)


def _tools_column(row: Mapping[str, Any], columns: Columns) -> str | None:
    if columns.tools is not None:
        return columns.tools
    return TOOLS_COLUMN if row.get(TOOLS_COLUMN) and not _is_mapped(TOOLS_COLUMN, columns) else None


def _is_mapped(name: str, columns: Columns) -> bool:
    """Whether a setting of columns names this column, so that it is not of its own name's kind."""
    return name in columns.model_dump(exclude={"system", "tools"}).values()
