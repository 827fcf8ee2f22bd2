"""Build a pair from a prompt and one or two answers of any style."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats.chats import conversation, is_chat, shared_beginning, tools_of, with_system
from dpo_trainer.data.formats.pairs import ChatPair, Message, Pair, Reason, TextPair, Unusable
from dpo_trainer.data.formats.values import lookup, objects, present, required, text

ANSWER_MARK = "\n\nAssistant:"
QUESTION_MARK = "\n\nHuman:"
# Columns that are taken for the prompt when there is no column of that name, and only one of these.
OTHER_PROMPTS = ("question", "query", "input", "history", "conversations", "conversation", "context")
# Columns of a system message, and of tools, that are known when none is mapped.
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
TOOLS_COLUMN = "tools"

Style = Literal["text", "chat", "dialogue"]


@dataclass(frozen=True)
class Field:
    """A value of a row. name: column, for reasons.

    bare: plain text that is stripped and separated from the answer by a blank line.
    """

    value: Any
    name: str
    bare: bool = False


def compose(
    row: Mapping[str, Any],
    columns: Columns,
    chosen: Field | None,
    rejected: Field | None,
    style: Style | None = None,
    *,
    score_gap: float | None = None,
    agreement: float | None = None,
) -> Pair:
    """Pair of a row's prompt with one or two answers. style: how they are read; None decides by the row.

    Raises Unusable.
    """
    answers = [answer for answer in (chosen, rejected) if answer is not None]
    style = style or _style(row, columns, answers)
    if style == "chat":
        prompt, turns = _chats(row, columns, answers)
        good, bad = (turns[0] if chosen is not None else None), (turns[-1] if rejected is not None else None)
        _check_turns(good, bad)
        return ChatPair(prompt, good, bad, score_gap, agreement, _tools(row, columns))
    _check_unread(row, columns)
    before, texts = (_dialogues if style == "dialogue" else _texts)(row, columns, answers)
    first, last = (texts[0] if chosen is not None else None), (texts[-1] if rejected is not None else None)
    _check_answers(first, last)
    return TextPair(before, first, last, score_gap, agreement)


def system_column(row: Mapping[str, Any], columns: Columns) -> str | None:
    """Name of the row's column of a system message: the mapped one, or a known one that has a value and is not mapped to else."""
    if columns.system is not None:
        return columns.system
    return next(
        (name for name in SYSTEM_COLUMNS if row.get(name) not in (None, "") and not _is_mapped(name, columns)), None
    )


def _tools(row: Mapping[str, Any], columns: Columns) -> tuple[Mapping[str, Any], ...]:
    name = _tools_column(columns)
    return () if name is None else tools_of(lookup(row, name), name)


def _tools_column(columns: Columns) -> str | None:
    return columns.tools or (None if _is_mapped(TOOLS_COLUMN, columns) else TOOLS_COLUMN)


def _is_mapped(name: str, columns: Columns) -> bool:
    """Whether some setting of columns names this column, so that it is no column of its own name's kind."""
    return name in columns.model_dump(exclude={"system", "tools"}).values()


def _check_unread(row: Mapping[str, Any], columns: Columns) -> None:
    """Refuse a system message or tools beside plain text, which gets no chat template. Raises Unusable."""
    system, tools = system_column(row, columns), _tools_column(columns)
    if system is not None and lookup(row, system):
        raise Unusable(
            Reason.UNREAD_COLUMN,
            f"{system}: a system message beside plain text, which has no place for it; set columns.system to {system}, which makes "
            f"messages of prompt and answers, or ignoreColumns to [{system}]",
        )
    if tools is not None and isinstance(value := objects(lookup(row, tools)), list | Mapping) and value:
        raise Unusable(
            Reason.UNREAD_COLUMN,
            f"{tools}: tools beside plain text, which has no place for them; set format to messages, or ignoreColumns to [{tools}]",
        )


def find_prompt(row: Mapping[str, Any], columns: Columns) -> Field | None:
    """Prompt of a row: the named column, or prompt, or a known alternative. Alpaca's instruction and input are joined."""
    if columns.prompt is not None:
        return Field(required(row, columns.prompt), columns.prompt)
    if row.get("prompt") is not None:
        return Field(row["prompt"], "prompt")
    if row.get("instruction") is not None:
        parts = [text(row[name], name) for name in present(row, ("instruction", "input"))]
        return Field("\n\n".join(part for part in parts if part.strip()), "instruction", bare=True)
    others = present(row, OTHER_PROMPTS)
    return Field(row[others[0]], others[0], bare=True) if len(others) == 1 else None


def are_dialogues(values: Iterable[Any], prompt: Any) -> bool:
    """Whether answers are whole texts of several turns, as Anthropic's HH-RLHF writes them.

    prompt: of the same row. With a prompt, only texts that begin with a question are whole dialogues, which repeat it.
    """
    return all(
        isinstance(value, str)
        and ANSWER_MARK in value
        and (value.startswith(QUESTION_MARK) if prompt is not None else QUESTION_MARK in value)
        for value in values
    )


def _style(row: Mapping[str, Any], columns: Columns, answers: list[Field]) -> Style:
    if columns.system is not None or any(is_chat(answer.value) for answer in answers):
        return "chat"
    prompt = find_prompt(row, columns)
    if are_dialogues((answer.value for answer in answers), prompt):
        return "dialogue"
    return "chat" if prompt is not None and is_chat(prompt.value) else "text"


def _prompt(row: Mapping[str, Any], columns: Columns) -> Field:
    found = find_prompt(row, columns)
    if found is not None:
        if found.name == "instruction" and columns.prompt is None and row.get("history"):
            raise Unusable(
                Reason.MALFORMED_MESSAGES,
                "history: earlier turns beside an instruction, which are not read; write all turns as messages in prompt",
            )
        return found
    detail = "no value in column prompt"
    if others := present(row, OTHER_PROMPTS):
        detail += f", and {' and '.join(others)} could all be it; set columns.prompt"
    raise Unusable(Reason.MISSING_COLUMN, detail)


def _texts(row: Mapping[str, Any], columns: Columns, answers: list[Field]) -> tuple[str, list[str]]:
    given = _prompt(row, columns)
    prompt = text(given.value, given.name)
    if not prompt.strip():
        raise Unusable(Reason.EMPTY_PROMPT, "the prompt is empty")
    found = [text(answer.value, answer.name) for answer in answers]
    if all(_is_encoded_list(value) for value in (prompt, *found)):
        raise Unusable(
            Reason.WRONG_TYPE,
            f"{' and '.join([given.name, *(answer.name for answer in answers)])}: text that holds a list as JSON; write the list "
            "itself, of messages",
        )
    return f"{prompt}\n\n" if given.bare else prompt, found


def _is_encoded_list(value: str) -> bool:
    """Whether a text is a JSON list of texts or objects, as a table that has no lists holds a chat."""
    if not (value.lstrip().startswith("[") and value.rstrip().endswith("]")):
        return False
    try:
        items = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return bool(items) and all(isinstance(item, str | Mapping) or item is None for item in items)


def _dialogues(row: Mapping[str, Any], columns: Columns, answers: list[Field]) -> tuple[str, list[str]]:
    split = [_split_dialogue(text(answer.value, answer.name), answer.name) for answer in answers]
    if len({prompt for prompt, _ in split}) > 1:
        raise Unusable(Reason.PROMPTS_DIFFER, "the texts before the last '\\n\\nAssistant:' are not the same")
    return split[0][0], [answer for _, answer in split]


def _split_dialogue(whole: str, name: str) -> tuple[str, str]:
    before, mark, answer = whole.rpartition(ANSWER_MARK)
    if not mark:
        raise Unusable(Reason.MALFORMED_DIALOGUE, f"{name}: no '\\n\\nAssistant:' in the text")
    if not before.strip():
        raise Unusable(Reason.EMPTY_PROMPT, f"{name}: nothing before the last '\\n\\nAssistant:'")
    if QUESTION_MARK in answer:
        raise Unusable(
            Reason.MALFORMED_DIALOGUE, f"{name}: the text continues with '\\n\\nHuman:' after the last answer"
        )
    return before + mark, answer


def _chats(row: Mapping[str, Any], columns: Columns, answers: list[Field]) -> tuple[tuple[Message, ...], list[Message]]:
    chats = [conversation(answer.value, answer.name, "assistant") for answer in answers]
    for answer, chat in zip(answers, chats, strict=True):
        if not chat:
            raise Unusable(Reason.MALFORMED_MESSAGES, f"{answer.name}: no messages")
    if all(len(chat) == 1 for chat in chats):
        given = _prompt(row, columns)
        prompt = conversation(given.value, given.name, "user")
    else:
        prompt = shared_beginning(chats)
        chats = [chat[len(prompt) :] for chat in chats]
        prompt = _with_earlier(row, columns, prompt)
    if any(len(chat) != 1 for chat in chats):
        raise Unusable(Reason.PROMPTS_DIFFER, "the conversations differ before their last message")
    for answer, chat in zip(answers, chats, strict=True):
        if chat[0].role != "assistant":
            raise Unusable(
                Reason.MALFORMED_MESSAGES,
                f"{answer.name}: the last message is not the assistant's, its role is {chat[0].role[:64]}; rename the role to assistant",
            )
    if (name := system_column(row, columns)) is not None and (system := lookup(row, name)) is not None:
        prompt = with_system(_system(system, name), prompt, name)
    if all(message.is_empty for message in prompt):
        raise Unusable(Reason.EMPTY_PROMPT, "no message before the answer has text")
    if prompt[-1].role == "assistant":
        raise Unusable(Reason.MALFORMED_MESSAGES, "the message before the answer is the assistant's too")
    return prompt, [chat[0] for chat in chats]


def _system(value: Any, name: str) -> str:
    """Text of a system message: a text, or one message of that role."""
    if not is_chat(value):
        return text(value, name)
    messages = conversation(value, name, "system")
    if [message.role for message in messages] != ["system"]:
        roles = ", ".join(message.role[:64] for message in messages)
        raise Unusable(
            Reason.MALFORMED_MESSAGES,
            f"{name}: expected text or one message of role system, found {len(messages)} of role {roles}; change the role, or set "
            f"ignoreColumns to [{name}]",
        )
    return messages[0].content


def _with_earlier(row: Mapping[str, Any], columns: Columns, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt inside whole conversations, behind those messages of a prompt column that the conversations don't repeat.

    A text beside whole conversations repeats one of their messages (as in ultrafeedback_binarized).
    """
    name = columns.prompt or "prompt"
    given = lookup(row, name)
    if columns.prompt is not None and given is None:
        raise Unusable(Reason.MISSING_COLUMN, f"no value in column {name}")
    if given is None:
        return prompt
    if isinstance(given, str):
        if any(given.strip() in message.content for message in prompt):
            return prompt
        raise _prompt_differs(name, "text that is in no message before the answer")
    earlier = conversation(given, name, "user")
    if _holds(prompt, earlier):
        return prompt
    if (both := _shared_end(earlier, prompt)) or not any(turn in prompt for turn in earlier if turn.role != "system"):
        return earlier + prompt[both:]
    raise _prompt_differs(name, "messages of which only some are in the conversations, or in another order")


def _holds(whole: tuple[Message, ...], part: tuple[Message, ...]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def _shared_end(earlier: tuple[Message, ...], prompt: tuple[Message, ...]) -> int:
    """How many of the last earlier messages begin the prompt."""
    most = min(len(earlier), len(prompt))
    return next((count for count in range(most, 0, -1) if earlier[-count:] == prompt[:count]), 0)


def _prompt_differs(name: str, found: str) -> Unusable:
    return Unusable(
        Reason.PROMPTS_DIFFER,
        f"{name}: {found}; leave out of the answers what {name} holds, or set ignoreColumns to [{name}] when the conversations are "
        "whole",
    )


def _check_turns(chosen: Message | None, rejected: Message | None) -> None:
    if chosen is not None and chosen.is_empty:
        raise Unusable(Reason.EMPTY_CHOSEN, "the chosen answer is empty")
    if rejected is not None and rejected.is_empty:
        raise Unusable(Reason.EMPTY_REJECTED, "the rejected answer is empty")
    if chosen is not None and rejected is not None and _stripped(chosen) == _stripped(rejected):
        raise Unusable(Reason.EQUAL_ANSWERS, "the answers are the same but for white space at their ends")


def _stripped(turn: Message) -> tuple[Any, ...]:
    return turn.content.strip(), turn.reasoning.strip(), turn.tool_calls


def _check_answers(chosen: str | None, rejected: str | None) -> None:
    if chosen is not None and not chosen.strip():
        raise Unusable(Reason.EMPTY_CHOSEN, "the chosen answer is empty")
    if rejected is not None and not rejected.strip():
        raise Unusable(Reason.EMPTY_REJECTED, "the rejected answer is empty")
    if chosen is not None and rejected is not None and chosen.strip() == rejected.strip():
        raise Unusable(Reason.EQUAL_ANSWERS, "the answers are the same but for white space at their ends")
