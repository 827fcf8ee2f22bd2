"""Dataset rows of any shape into pairs, or a counted reason why not.

Three formats are read. `pairs`: prompt, chosen and rejected as text. `messages`: the same as chat messages, or whole
conversations in chosen and rejected that share their beginning. `dialogue`: the "\\n\\nHuman: … \\n\\nAssistant: …" texts
of Anthropic's HH-RLHF (arXiv 2204.05862).

Nothing here raises on a row, whatever it holds: a row becomes a pair or a Rejection.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from dpo_operator.api.data import Columns

Format = Literal["pairs", "messages", "dialogue"]

ANSWER_MARK = "\n\nAssistant:"
QUESTION_MARK = "\n\nHuman:"


class Reason(StrEnum):
    """Why a row was left out. All but those of NOT_BAD count against filters.maxBadRows."""

    MALFORMED_JSON = "malformed_json"
    NOT_UTF8 = "not_utf8"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_COLUMN = "missing_column"
    WRONG_TYPE = "wrong_type"
    INVALID_TEXT = "invalid_text"
    MALFORMED_DIALOGUE = "malformed_dialogue"
    MALFORMED_MESSAGES = "malformed_messages"
    EMPTY_PROMPT = "empty_prompt"
    EMPTY_CHOSEN = "empty_chosen"
    EMPTY_REJECTED = "empty_rejected"
    EQUAL_ANSWERS = "equal_answers"
    PROMPTS_DIFFER = "prompts_differ"
    BAD_CONFIDENCE = "bad_confidence"
    TEMPLATE_ERROR = "template_error"
    EQUAL_AFTER_TRUNCATION = "equal_after_truncation"
    OTHER_FORMAT = "other_format"
    BAD_SCORE = "bad_score"
    BAD_VOTE = "bad_vote"
    TIE = "tie"
    LOW_CONFIDENCE = "low_confidence"
    LOW_SCORE_GAP = "low_score_gap"
    LOW_AGREEMENT = "low_agreement"
    CONDITION = "condition"
    LENGTH_RATIO = "length_ratio"
    DUPLICATE = "duplicate"
    TOO_LONG = "too_long"


# Sound rows that a filter drops, that are longer than data.truncation allows, or that prefer neither answer.
NOT_BAD = frozenset({
    Reason.TIE, Reason.LOW_CONFIDENCE, Reason.LOW_SCORE_GAP, Reason.LOW_AGREEMENT, Reason.CONDITION, Reason.LENGTH_RATIO,
    Reason.DUPLICATE, Reason.TOO_LONG,
})  # fmt: skip


@dataclass(frozen=True)
class Rejection:
    """A row that is left out. detail: a short sentence that never quotes the row's text."""

    reason: Reason
    detail: str

    @property
    def is_bad(self) -> bool:
        """Whether the row counts against filters.maxBadRows; a row that a filter drops does not."""
        return self.reason not in NOT_BAD


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class TextPair:
    """Plain text: the policy reads prompt + chosen and prompt + rejected, with nothing between.

    An unpaired answer is chosen when it is desirable, else rejected; the other one is None, here as in ChatPair.
    score_gap: chosen minus rejected, where the row gave scores. agreement: share of the votes for chosen, ties counted half.
    """

    prompt: str
    chosen: str | None
    rejected: str | None
    score_gap: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class ChatPair:
    """Chat messages: the answers are the contents of one assistant turn after the prompt's messages."""

    prompt: tuple[Message, ...]
    chosen: str | None
    rejected: str | None
    score_gap: float | None = None
    agreement: float | None = None


Pair = TextPair | ChatPair


class _Unusable(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.rejection = Rejection(reason, detail)


def normalize(row: Any, row_format: Format, columns: Columns, min_confidence: float | None = None) -> Pair | Rejection:
    """Pair in a row, or why there is none.

    row: a decoded row; anything but a mapping is rejected.
    min_confidence: pairs whose confidence column is below it are rejected, as a filter and not as bad rows.
    """
    try:
        if not isinstance(row, Mapping):
            raise _Unusable(Reason.NOT_AN_OBJECT, f"expected an object with columns, found {_kind(row)}")
        pair = _READERS[row_format](row, columns)
        _check_answers(pair.chosen, pair.rejected)
        if min_confidence is not None:
            _check_confidence(row, columns.confidence, min_confidence)
        return pair
    except _Unusable as unusable:
        return unusable.rejection


def detect(rows: Iterable[Any], columns: Columns) -> Format | None:
    """Format that most of the given rows have; None when no row fits any."""
    votes = Counter(found for row in rows if (found := _looks_like(row, columns)) is not None)
    return votes.most_common(1)[0][0] if votes else None


def _looks_like(row: Any, columns: Columns) -> Format | None:
    if not isinstance(row, Mapping):
        return None
    prompt, chosen, rejected = row.get(columns.prompt or "prompt"), row.get(columns.chosen), row.get(columns.rejected)
    if any(isinstance(value, list) for value in (prompt, chosen, rejected)):
        return "messages"
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        return None
    if isinstance(prompt, str) or (columns.prompt is None and isinstance(row.get("instruction"), str)):
        return "pairs"
    return "dialogue" if ANSWER_MARK in chosen and QUESTION_MARK in chosen else None


def _read_pairs(row: Mapping[str, Any], columns: Columns) -> TextPair:
    prompt = _prompt_text(row, columns)
    if not prompt.strip():
        raise _Unusable(Reason.EMPTY_PROMPT, "the prompt is empty")
    return TextPair(prompt, _text(row, columns.chosen), _text(row, columns.rejected))


def _prompt_text(row: Mapping[str, Any], columns: Columns) -> str:
    """The prompt column, or the instruction and input columns of Alpaca-like data.

    Such data keeps no white space between its parts, so a blank line is put after each.
    """
    name = columns.prompt or "prompt"
    if columns.prompt is not None or row.get(name) is not None or row.get("instruction") is None:
        return _text(row, name)
    parts = [_text(row, "instruction")]
    if row.get("input") is not None:
        parts.append(_text(row, "input"))
    return "".join(f"{part}\n\n" for part in parts if part.strip())


def _read_dialogue(row: Mapping[str, Any], columns: Columns) -> TextPair:
    (prompt, chosen), (other_prompt, rejected) = (
        _split_dialogue(_text(row, name), name) for name in (columns.chosen, columns.rejected)
    )
    if prompt != other_prompt:
        raise _Unusable(Reason.PROMPTS_DIFFER, "the texts before the last '\\n\\nAssistant:' are not the same")
    return TextPair(prompt, chosen, rejected)


def _split_dialogue(text: str, column: str) -> tuple[str, str]:
    before, mark, answer = text.rpartition(ANSWER_MARK)
    if not mark:
        raise _Unusable(Reason.MALFORMED_DIALOGUE, f"{column}: no '\\n\\nAssistant:' in the text")
    if not before.strip():
        raise _Unusable(Reason.EMPTY_PROMPT, f"{column}: nothing before the last '\\n\\nAssistant:'")
    return before + mark, answer


def _read_messages(row: Mapping[str, Any], columns: Columns) -> ChatPair:
    chosen = _answer_messages(row, columns.chosen)
    rejected = _answer_messages(row, columns.rejected)
    name = columns.prompt or "prompt"
    given = row.get(name)
    if columns.prompt is not None and given is None:
        raise _Unusable(Reason.MISSING_COLUMN, f"no value in column {name}")
    if len(chosen) == len(rejected) == 1:
        prompt = _prompt_messages(row, name)
    else:
        # Whole conversations. A prompt column beside them repeats their beginning (as in ultrafeedback_binarized)
        # or, as messages, comes before it.
        shared = _shared_beginning(chosen, rejected)
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
        if isinstance(given, list):
            earlier = _messages(given, name)
            prompt = prompt if prompt[: len(earlier)] == earlier else earlier + prompt
    if len(chosen) != 1 or len(rejected) != 1:
        raise _Unusable(Reason.PROMPTS_DIFFER, "the conversations differ before their last message")
    for column, answer in ((columns.chosen, chosen[0]), (columns.rejected, rejected[0])):
        if answer.role != "assistant":
            raise _Unusable(Reason.MALFORMED_MESSAGES, f"{column}: the last message is not the assistant's")
    if not any(message.content.strip() for message in prompt):
        raise _Unusable(Reason.EMPTY_PROMPT, "no message before the answer has text")
    if prompt[-1].role == "assistant":
        raise _Unusable(Reason.MALFORMED_MESSAGES, "the message before the answer is the assistant's too")
    return ChatPair(prompt, chosen[0].content, rejected[0].content)


def _answer_messages(row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    value = row.get(column)
    if isinstance(value, str):
        return (Message("assistant", _text(row, column)),)
    found = _messages(_required(row, column), column)
    if not found:
        raise _Unusable(Reason.MALFORMED_MESSAGES, f"{column}: no messages")
    return found


def _prompt_messages(row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    if isinstance(row.get(column), str):
        return (Message("user", _text(row, column)),)
    return _messages(_required(row, column), column)


def _shared_beginning(one: tuple[Message, ...], other: tuple[Message, ...]) -> tuple[Message, ...]:
    """Messages that both begin with, leaving each at least its last one."""
    limit = min(len(one), len(other)) - 1
    count = next((i for i in range(limit) if one[i] != other[i]), limit)
    return one[:count]


def _messages(value: Any, column: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise _Unusable(Reason.WRONG_TYPE, f"{column}: expected a list of messages, found {_kind(value)}")
    return tuple(_message(item, column) for item in value)


def _message(item: Any, column: str) -> Message:
    if not isinstance(item, Mapping):
        raise _Unusable(Reason.WRONG_TYPE, f"{column}: expected messages with role and content, found {_kind(item)}")
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or not role:
        raise _Unusable(Reason.MALFORMED_MESSAGES, f"{column}: a message has no role")
    if item.get("tool_calls"):
        raise _Unusable(Reason.MALFORMED_MESSAGES, f"{column}: a message has tool_calls, which are not read")
    if isinstance(content, list):
        content = _joined_parts(content, column)
    if not isinstance(content, str):
        raise _Unusable(Reason.WRONG_TYPE, f"{column}: expected text as a message's content, found {_kind(content)}")
    return Message(_encodable(role, column), _encodable(content, column))


def _joined_parts(parts: list[Any], column: str) -> str:
    """Text of content given as parts, [{"type": "text", "text": …}], as multi-modal data writes it."""
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise _Unusable(Reason.WRONG_TYPE, f"{column}: a message's content has parts that are not text")
    return "".join(str(text) for text in texts)


def _required(row: Mapping[str, Any], column: str) -> Any:
    value = row.get(column)
    if value is None:  # `datasets` fills columns that a row lacks with None
        raise _Unusable(Reason.MISSING_COLUMN, f"no value in column {column}")
    return value


def _text(row: Mapping[str, Any], column: str) -> str:
    value = _required(row, column)
    if not isinstance(value, str):
        raise _Unusable(Reason.WRONG_TYPE, f"{column}: expected text, found {_kind(value)}")
    return _encodable(value, column)


def _encodable(text: str, column: str) -> str:
    """The text itself. NUL and other control characters stay; half a surrogate pair is no text and can't be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Unusable(Reason.INVALID_TEXT, f"{column}: the text holds half a surrogate pair") from None
    return text


def _check_answers(chosen: str | None, rejected: str | None) -> None:
    if chosen is not None and not chosen.strip():
        raise _Unusable(Reason.EMPTY_CHOSEN, "the chosen answer is empty")
    if rejected is not None and not rejected.strip():
        raise _Unusable(Reason.EMPTY_REJECTED, "the rejected answer is empty")
    if chosen is not None and rejected is not None and chosen.strip() == rejected.strip():
        raise _Unusable(Reason.EQUAL_ANSWERS, "the answers are the same but for white space at their ends")


def _check_confidence(row: Mapping[str, Any], column: str, least: float) -> None:
    value = _required(row, column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _Unusable(Reason.BAD_CONFIDENCE, f"{column}: expected a number from 0 to 1")
    if value < least:
        raise _Unusable(Reason.LOW_CONFIDENCE, f"{column}: {value:g} is below filters.minConfidence {least:g}")


def _kind(value: Any) -> str:
    """Type of a value in the words of JSON."""
    if value is None:
        return "null"
    names = ((bool, "a boolean"), (int | float, "a number"), (str, "text"), (list, "a list"), (Mapping, "an object"))
    return next((name for kind, name in names if isinstance(value, kind)), type(value).__name__)


_READERS: dict[Format, Callable[[Mapping[str, Any], Columns], Pair]] = {
    "pairs": _read_pairs,
    "messages": _read_messages,
    "dialogue": _read_dialogue,
}
