"""Build a pair from a prompt and one or two answers of any style."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats.beside import check_unread, system_of, tools_beside
from dpo_trainer.data.formats.chats import (
    conversation,
    is_chat,
    joined_turns,
    shared_beginning,
    turns,
    with_system,
)
from dpo_trainer.data.formats.pairs import ChatPair, Message, Pair, Reason, TextPair, Unusable
from dpo_trainer.data.formats.values import listed, present, required, text

ANSWER_MARK = "\n\nAssistant:"
QUESTION_MARK = "\n\nHuman:"
# Columns that are taken for the prompt when there is no column of that name, and only one of these.
OTHER_PROMPTS = ("question", "query", "input", "history", "messages", "conversations", "conversation", "context")
# Columns of what a text model can't read.
MEDIA = ("image", "images", "video", "videos", "audio", "audios")

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
    _check_media(row)
    style = style or _style(row, columns, answers)
    if style == "chat":
        prompt, said = _chats(row, columns, answers)
        good, bad = (said[0] if chosen is not None else None), (said[-1] if rejected is not None else None)
        check_answers(good, bad)
        return ChatPair(prompt, good, bad, score_gap, agreement, tools_beside(row, columns))
    check_unread(row, columns)
    before, texts = (_dialogues if style == "dialogue" else _texts)(row, columns, answers)
    first, last = (texts[0] if chosen is not None else None), (texts[-1] if rejected is not None else None)
    check_answers(first, last)
    return TextPair(before, first, last, score_gap, agreement)


def _check_media(row: Mapping[str, Any]) -> None:
    if found := [name for name in MEDIA if row.get(name)]:
        raise Unusable(
            Reason.WRONG_TYPE,
            f"{found[0]}: the row has more than text, and models are trained on text alone; leave such rows out with filters.where "
            f"({found[0]} DoesNotExist), or set ignoreColumns to [{found[0]}] if the text stands alone",
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
    if prompt is None:
        return "text"
    return "chat" if is_chat(prompt.value) or are_turns(prompt.value, (answer.value for answer in answers)) else "text"


def are_turns(prompt: Any, answers: Iterable[Any]) -> bool:
    """Whether the prompt and all answers are lists of texts, one for each turn."""
    return all(turns(value) is not None for value in (prompt, *answers))


def _prompt(row: Mapping[str, Any], columns: Columns) -> Field:
    found = find_prompt(row, columns)
    if found is not None:
        _check_history(row, [found])
        return found
    detail = "no value in column prompt"
    if others := present(row, OTHER_PROMPTS):
        detail += f", and {' and '.join(others)} could all be it; set columns.prompt"
    raise Unusable(Reason.MISSING_COLUMN, detail)


def _check_history(row: Mapping[str, Any], read: list[Field]) -> None:
    """Refuse a list of earlier turns that is none of the columns that are read."""
    if any(found.name == "history" for found in read):
        return
    if isinstance(earlier := listed(row.get("history")), list) and earlier:
        beside = read[0].name if read else "the conversations"
        raise Unusable(
            Reason.MALFORMED_MESSAGES,
            f"history: earlier turns beside {beside}, which are not read; write all turns as messages in prompt, or set ignoreColumns "
            "to [history]",
        )


def _texts(row: Mapping[str, Any], columns: Columns, answers: list[Field]) -> tuple[str, list[str]]:
    given = _prompt(row, columns)
    prompt = text(given.value, given.name)
    if not prompt.strip():
        raise Unusable(Reason.EMPTY_PROMPT, "the prompt is empty")
    found = [text(answer.value, answer.name) for answer in answers]
    if are_turns(prompt, found):
        raise Unusable(
            Reason.WRONG_TYPE,
            f"{' and '.join([given.name, *(answer.name for answer in answers)])}: text that holds a list of turns as JSON; set format "
            "to messages",
        )
    return f"{prompt}\n\n" if given.bare else prompt, found


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
    in_turns = _in_turns(row, columns, answers)
    chats = in_turns or [conversation(answer.value, answer.name, "assistant") for answer in answers]
    for answer, chat in zip(answers, chats, strict=True):
        if not chat:
            raise Unusable(Reason.MALFORMED_MESSAGES, f"{answer.name}: no messages")
    if all(len(chat) == 1 for chat in chats):
        given = _prompt(row, columns)
        prompt = conversation(given.value, given.name, "user")
    else:
        whole = _completed(chats)
        prompt = shared_beginning(whole)
        chats = [chat[len(prompt) :] for chat in whole]
        beside = _beside_whole(row, columns, answers)
        _check_history(row, beside)
        for given in beside if in_turns is None else ():
            prompt = _with_earlier(given, prompt, whole)
    if any(len(chat) != 1 for chat in chats):
        raise Unusable(Reason.PROMPTS_DIFFER, "the conversations differ before their last message")
    for answer, chat in zip(answers, chats, strict=True):
        if chat[0].role != "assistant":
            raise Unusable(
                Reason.MALFORMED_MESSAGES,
                f"{answer.name}: the last message is not the assistant's, its role is {chat[0].role[:64]}; rename the role to assistant",
            )
    if (system := system_of(row, columns)) is not None:
        prompt = with_system(system[0], prompt, system[1])
    if all(message.is_empty for message in prompt):
        raise Unusable(Reason.EMPTY_PROMPT, "no message before the answer has text")
    if prompt[-1].role == "assistant":
        raise Unusable(Reason.MALFORMED_MESSAGES, "the message before the answer is the assistant's too")
    return prompt, [chat[0] for chat in chats]


def _in_turns(row: Mapping[str, Any], columns: Columns, answers: list[Field]) -> list[tuple[Message, ...]] | None:
    """Whole conversations of a prompt and answers that are lists of texts; None when they are not."""
    prompt = find_prompt(row, columns)
    if prompt is None or not are_turns(prompt.value, (answer.value for answer in answers)):
        return None
    asked = turns(prompt.value) or []
    return [joined_turns(asked, turns(answer.value) or [], (prompt.name, answer.name)) for answer in answers]


def _completed(chats: list[tuple[Message, ...]]) -> list[tuple[Message, ...]]:
    """Whole conversations; an answer alone beside one takes the place of its last message, as ms-swift writes it."""
    longest = max(chats, key=len)
    return [(*longest[:-1], *chat) if len(chat) == 1 and chat[0].role == "assistant" else chat for chat in chats]


def _beside_whole(row: Mapping[str, Any], columns: Columns, answers: list[Field]) -> list[Field]:
    """The prompt beside whole conversations, or all columns that could be it, but for the answers' and those that a setting names."""
    if columns.prompt is None:
        taken = {answer.name.split(".")[0] for answer in answers}
        taken |= {name for name in columns.model_dump().values() if isinstance(name, str)}
        row = {name: value for name, value in row.items() if name not in taken}
    if (found := find_prompt(row, columns)) is not None:
        return [found]
    return [Field(row[name], name, bare=True) for name in present(row, OTHER_PROMPTS)]


def _with_earlier(
    given: Field, prompt: tuple[Message, ...], conversations: list[tuple[Message, ...]]
) -> tuple[Message, ...]:
    """The prompt inside whole conversations, behind those messages of a prompt column that the conversations don't repeat.

    A text beside whole conversations repeats one of their messages (as in ultrafeedback_binarized).
    """
    name = given.name
    if isinstance(given.value, str) and not is_chat(given.value):
        # An instruction and its input are joined here by a blank line, and perhaps otherwise in the message.
        parts = given.value.split("\n\n") if given.bare else [given.value]
        if all(any(part.strip() in message.content for message in prompt) for part in parts):
            return prompt
        raise _prompt_differs(name, "text that is in no message before the answer")
    earlier = conversation(given.value, name, "user")
    whole, part = [_said(turn) for turn in prompt], [_said(turn) for turn in earlier]
    if any(_holds([_said(turn) for turn in chat], part) for chat in conversations):
        return prompt
    both = next((n for n in range(min(len(part), len(whole)), 0, -1) if part[-n:] == whole[:n]), 0)
    if both or not any(turn in whole for turn in part if turn[0] != "system"):
        return earlier + prompt[both:]
    raise _prompt_differs(name, "messages of which only some are in the conversations, or in another order")


def _holds(whole: list[Any], part: list[Any]) -> bool:
    """Whether the turns of a part follow each other in the whole."""
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def _said(turn: Message) -> tuple[Any, ...]:
    """A turn for comparisons: white space at the ends of texts does not count."""
    return turn.role, turn.content.strip(), turn.reasoning.strip(), turn.tool_calls


def _prompt_differs(name: str, found: str) -> Unusable:
    return Unusable(
        Reason.PROMPTS_DIFFER,
        f"{name}: {found}; leave out of the answers what {name} holds, or set ignoreColumns to [{name}] when the conversations are "
        "whole",
    )


def check_answers(chosen: str | Message | None, rejected: str | Message | None) -> None:
    """Raise Unusable for an answer that says nothing, and for answers that are the same."""
    if chosen is not None and _is_empty(chosen):
        raise Unusable(Reason.EMPTY_CHOSEN, "the chosen answer is empty")
    if rejected is not None and _is_empty(rejected):
        raise Unusable(Reason.EMPTY_REJECTED, "the rejected answer is empty")
    if chosen is not None and rejected is not None and _stripped(chosen) == _stripped(rejected):
        raise Unusable(Reason.EQUAL_ANSWERS, "the answers are the same but for white space at their ends")


def _is_empty(answer: str | Message) -> bool:
    return answer.is_empty if isinstance(answer, Message) else not answer.strip()


def _stripped(answer: str | Message) -> tuple[Any, ...]:
    return _said(answer) if isinstance(answer, Message) else (answer.strip(),)
