"""Chat messages: {"role": …, "content": …}, ShareGPT's {"from": …, "value": …}, and text in their place."""

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_trainer.data.formats.pairs import Message, Reason, Unusable
from dpo_trainer.data.formats.values import encodable, kind, objects, text

# Spellings of roles that mean one thing only. Other roles (tool, developer, …) stay as they are, for the template to judge.
_ROLES = {
    "system": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, or one message."""
    value = objects(value)
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, Mapping) and any(isinstance(first.get(key), str) for key in ("role", "from"))


def conversation(value: Any, name: str, role: str) -> tuple[Message, ...]:
    """Messages of a value: a list of them, one alone, or text, which is one message of the given role.

    name: column, for reasons.
    """
    value = objects(value)
    if isinstance(value, str):
        return (Message(role, text(value, name)),)
    if isinstance(value, Mapping) and is_chat(value):
        value = [value]
    if not isinstance(value, list):
        raise Unusable(Reason.WRONG_TYPE, f"{name}: expected text or a list of messages, found {kind(value)}")
    return tuple(_message(item, name) for item in value)


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
    """Text of content given as parts, [{"type": "text", "text": …}], as multi-modal data writes it."""
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(part, str) for part in texts):
        raise Unusable(Reason.WRONG_TYPE, f"{name}: a message's content has parts that are not text")
    return "".join(str(part) for part in texts)
