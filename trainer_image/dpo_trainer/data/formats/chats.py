"""Chat messages: {"role": …, "content": …}, ShareGPT's {"from": …, "value": …}, and text in their place."""

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_trainer.data.formats.pairs import Message, Reason, Unusable
from dpo_trainer.data.formats.values import encodable, from_text, kind, listed, messages_of, text

# Spellings of roles that mean one thing only. Other roles (developer, …) stay as they are, for the template to judge.
_ROLES = {
    "system": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "chatbot": "assistant",
    "model": "assistant", "ai": "assistant",
    "tool": "tool", "observation": "tool", "tool_response": "tool", "function": "tool", "function_response": "tool",
}  # fmt: skip
# Roles of turns whose content is a tool call as JSON: ShareGPT, ms-swift.
_CALLS = ("function_call", "tool_call")
# Names of a message's reasoning.
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning", "thought")
# Other keys of a message that templates read.
_OTHERS = ("name", "tool_call_id")


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


def as_message(turn: Message) -> dict[str, Any]:
    """A turn as conversation reads it."""
    reasoning = {REASONING_KEYS[0]: turn.reasoning} if turn.reasoning else {}
    calls = {"tool_calls": [*turn.tool_calls]} if turn.tool_calls else {}
    return {"role": turn.role, "content": turn.content} | reasoning | calls | dict(turn.others)


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
        raise Unusable(
            Reason.MALFORMED_MESSAGES,
            f"{name}: the messages begin with another system message; keep one of them, or set ignoreColumns to [{name}]",
        )
    return (first, *messages)


def _message(item: Any, name: str) -> Message:
    if not isinstance(item, Mapping):
        raise Unusable(Reason.WRONG_TYPE, f"{name}: expected messages with role and content, found {kind(item)}")
    role = item.get("role") if item.get("role") is not None else item.get("from")
    content = item.get("content") if item.get("content") is not None else item.get("value")
    if not isinstance(role, str) or not role.strip():
        raise Unusable(Reason.MALFORMED_MESSAGES, f"{name}: a message has no role")
    role = encodable(role, name)
    if isinstance(content, list):
        content = _joined_parts(content, name)
    calls = _calls(item, name)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise Unusable(Reason.WRONG_TYPE, f"{name}: expected text as a message's content, found {kind(content)}")
    if role.strip().lower() in _CALLS:
        if content.strip() or not calls:
            calls = _same_calls(calls, _written_calls(content, f"{name}: a message of role {role[:64]}"), name)
        return Message("assistant", "", _reasoning(item, name), calls)
    others = tuple((key, encodable(item[key], name)) for key in _OTHERS if isinstance(item.get(key), str))
    role = _ROLES.get(role.strip().lower(), role)
    return Message(role, encodable(content, name), _reasoning(item, name), calls, others)


def _calls(item: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], ...]:
    """Tool calls of a message: in tool_calls, or in function_call, as OpenAI wrote one earlier, also as its JSON."""
    calls = tool_calls(item.get("tool_calls"), f"{name}: tool_calls")
    call, place = item.get("function_call"), f"{name}: function_call"
    if not call or (isinstance(call, str) and not call.strip()):
        return calls
    if isinstance(call, str):
        return _same_calls(calls, _written_calls(call, place), name)
    found = tool_calls([call] if isinstance(call, Mapping) else call, place)
    return _same_calls(calls, tuple({"type": "function", "function": function_of(one)} for one in found), name)


def _same_calls(
    calls: tuple[Mapping[str, Any], ...], others: tuple[Mapping[str, Any], ...], name: str
) -> tuple[Mapping[str, Any], ...]:
    """Calls of a message that has them in two places, which must be the same when both are there."""
    if calls and [function_of(call) for call in calls] != [function_of(call) for call in others]:
        raise Unusable(
            Reason.MALFORMED_MESSAGES, f"{name}: a message has different calls in two places; keep those of tool_calls"
        )
    return calls or others


def _reasoning(item: Mapping[str, Any], name: str) -> str:
    given = {key: item[key] for key in REASONING_KEYS if item.get(key)}
    for key, value in given.items():
        if not isinstance(value, str):
            raise Unusable(Reason.WRONG_TYPE, f"{name}: expected text as a message's {key}, found {kind(value)}")
    if len(set(given.values())) > 1:
        raise Unusable(Reason.MALFORMED_MESSAGES, f"{name}: a message has different texts in {' and '.join(given)}")
    return encodable(next(iter(given.values()), ""), name)


def tool_calls(value: Any, name: str) -> tuple[Mapping[str, Any], ...]:
    """Tool calls of a message, none when there is no value. Raises Unusable."""
    found = _functions(value, name, "arguments")
    for call in found:
        arguments = function_of(call).get("arguments")
        if arguments is not None and not isinstance(arguments, str | Mapping):
            raise Unusable(
                Reason.WRONG_TYPE, f"{name}: expected arguments as an object or as its JSON, found {kind(arguments)}"
            )
    return found


def tools_of(value: Any, name: str) -> tuple[Mapping[str, Any], ...]:
    """Tools that a row offers: a list of their schemas, or its JSON; none when there is no value.

    Keys without a value go, because Parquet gives every tool the keys of all. Raises Unusable.
    """
    return tuple(_without_null(tool) for tool in _functions(value, name, "parameters"))


def function_of(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object with the name, of a tool or a call: within "function", or the item itself."""
    inner = item.get("function")
    return inner if isinstance(inner, Mapping) else item


def _functions(value: Any, name: str, what: str) -> tuple[Mapping[str, Any], ...]:
    value = listed(encodable(value, name) if isinstance(value, str) else value)
    if not value:
        return ()
    if not isinstance(value, list):
        raise Unusable(Reason.WRONG_TYPE, f"{name}: expected a list of objects or its JSON, found {kind(value)}")
    for item in value:
        if not isinstance(item, Mapping) or not isinstance(function_of(item).get("name"), str):
            raise Unusable(
                Reason.MALFORMED_MESSAGES, f"{name}: expected objects with name and {what}, found {kind(item)} without"
            )
        _check_encodable(item, name)
    return tuple(value)


def _written_calls(content: str, name: str) -> tuple[Mapping[str, Any], ...]:
    """Tool calls that a turn's content holds as JSON: one object with name and arguments, or a list of them."""
    found = from_text(content)
    calls = tool_calls([found] if isinstance(found, Mapping) else found, name) if found is not content else ()
    if not calls:
        raise Unusable(
            Reason.MALFORMED_MESSAGES,
            f"{name}: expected a call as JSON, with name and arguments; write the call so, or the turn as an assistant's",
        )
    return tuple({"type": "function", "function": function_of(call)} for call in calls)


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


def _check_encodable(value: Any, name: str) -> None:
    if isinstance(value, str):
        encodable(value, name)
    elif isinstance(value, Mapping | list):
        for inner in (*value, *value.values()) if isinstance(value, Mapping) else value:
            _check_encodable(inner, name)


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
