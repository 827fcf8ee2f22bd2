"""Chat messages: {"role": …, "content": …}, ShareGPT's {"from": …, "value": …}, and text in their place."""

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_trainer.data.formats.pairs import Message, Reason, Unusable
from dpo_trainer.data.formats.values import encodable, from_text, kind, messages_of, text

# Spellings of roles that mean one thing only. Other roles (tool, developer, …) stay as they are, for the template to judge.
_ROLES = {
    "system": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, or one message."""
    value = messages_of(value)
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, Mapping) and any(isinstance(first.get(key), str) for key in ("role", "from"))


def conversation(value: Any, name: str, role: str) -> tuple[Message, ...]:
    """Messages of a value: a list of them, one alone, or text, which is one message of the given role.

    name: column, for reasons.
    """
    value = messages_of(value)
    if isinstance(value, str):
        return (Message(role, text(value, name)),)
    if isinstance(value, Mapping) and is_chat(value):
        value = [value]
    if not isinstance(value, list):
        raise Unusable(Reason.WRONG_TYPE, f"{name}: expected text or a list of messages, found {kind(value)}")
    return tuple(_message(item, name) for item in value)


def turns(value: Any) -> list[str | None] | None:
    """One side of a chat, turn by turn, as the LMSYS arena writes it: a list of texts, or such a list in text; None for other values."""
    found = from_text(value)
    if not isinstance(found, list) or not found:
        return None
    return found if all(turn is None or isinstance(turn, str) for turn in found) else None


def joined_turns(asked: list[str | None], answered: list[str | None], names: tuple[str, str]) -> tuple[Message, ...]:
    """The chat of a list of the user's texts and one of the assistant's. names: their columns, for reasons."""
    if len(asked) != len(answered):
        raise Unusable(
            Reason.MALFORMED_MESSAGES, f"{names[1]}: {len(answered)} answers to the {len(asked)} texts in {names[0]}"
        )
    return tuple(
        Message(role, text(turn, name))
        for pair in zip(asked, answered, strict=True)
        for role, name, turn in zip(("user", "assistant"), names, pair, strict=True)
    )


def shared_beginning(conversations: Sequence[tuple[Message, ...]]) -> tuple[Message, ...]:
    """Longest common prefix of conversations, leaving each at least its last message."""
    limit = min(len(messages) for messages in conversations) - 1
    first = conversations[0]
    count = next((i for i in range(limit) if any(other[i] != first[i] for other in conversations)), limit)
    return first[:count]


def with_system(system: str, messages: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    """The messages behind a system message; nothing is added when they begin with the same one, or when it is empty."""
    first = Message("system", system)
    if not system.strip() or messages[:1] == (first,):
        return messages
    if messages and messages[0].role == "system":
        raise Unusable(Reason.MALFORMED_MESSAGES, f"{name}: the messages begin with another system message")
    return (first, *messages)


def _message(item: Any, name: str) -> Message:
    if not isinstance(item, Mapping):
        raise Unusable(Reason.WRONG_TYPE, f"{name}: expected messages with role and content, found {kind(item)}")
    role = item.get("role") if item.get("role") is not None else item.get("from")
    content = item.get("content") if item.get("content") is not None else item.get("value")
    if not isinstance(role, str) or not role.strip():
        raise Unusable(Reason.MALFORMED_MESSAGES, f"{name}: a message has no role")
    if item.get("tool_calls"):
        raise Unusable(Reason.MALFORMED_MESSAGES, f"{name}: a message has tool_calls, which are not read")
    if isinstance(content, list):
        content = _joined_parts(content, name)
    if not isinstance(content, str):
        raise Unusable(Reason.WRONG_TYPE, f"{name}: expected text as a message's content, found {kind(content)}")
    role = encodable(role, name)
    return Message(_ROLES.get(role.strip().lower(), role), encodable(content, name))


def _joined_parts(parts: list[Any], name: str) -> str:
    """Text of content given as parts: [{"type": "text", "text": …}], or with value in the place of text."""
    return "".join(_text_of_part(part, name) for part in parts)


def _text_of_part(part: Any, name: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        found = str(part.get("type"))[:64] if isinstance(part, Mapping) else kind(part)
        raise Unusable(
            Reason.WRONG_TYPE,
            f"{name}: a message's content has a part that is not text ({found}); models are trained on text alone",
        )
    value = part.get("text") if part.get("text") is not None else part.get("value")
    if not isinstance(value, str):
        raise Unusable(Reason.WRONG_TYPE, f"{name}: a message's content has a text part without its text")
    return value
