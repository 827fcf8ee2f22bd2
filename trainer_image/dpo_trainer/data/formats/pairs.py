"""Results of reading a row: a pair, or a Rejection with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Format = Literal["pairs", "messages", "dialogue", "scored", "votes", "unpaired", "rated"]


class Reason(StrEnum):
    """Why a row was left out. All but those of NOT_BAD count against filters.maxBadRows."""

    MALFORMED_JSON = "malformed_json"
    MALFORMED_CSV = "malformed_csv"
    NOT_UTF8 = "not_utf8"
    ROW_TOO_BIG = "row_too_big"
    NOT_AN_OBJECT = "not_an_object"
    OTHER_FORMAT = "other_format"
    MISSING_COLUMN = "missing_column"
    WRONG_TYPE = "wrong_type"
    INVALID_TEXT = "invalid_text"
    MALFORMED_DIALOGUE = "malformed_dialogue"
    MALFORMED_MESSAGES = "malformed_messages"
    BAD_SCORE = "bad_score"
    BAD_VOTE = "bad_vote"
    EMPTY_PROMPT = "empty_prompt"
    EMPTY_CHOSEN = "empty_chosen"
    EMPTY_REJECTED = "empty_rejected"
    EQUAL_ANSWERS = "equal_answers"
    PROMPTS_DIFFER = "prompts_differ"
    SCATTERED_PROMPT = "scattered_prompt"
    BAD_CONFIDENCE = "bad_confidence"
    UNREAD_COLUMN = "unread_column"
    TEMPLATED_TEXT = "templated_text"
    TEMPLATE_ERROR = "template_error"
    LEFT_OUT_BY_TEMPLATE = "left_out_by_template"
    EQUAL_AFTER_TRUNCATION = "equal_after_truncation"
    TIE = "tie"
    SINGLE_ANSWER = "single_answer"
    LOW_CONFIDENCE = "low_confidence"
    LOW_SCORE_GAP = "low_score_gap"
    LOW_AGREEMENT = "low_agreement"
    CONDITION = "condition"
    LENGTH_RATIO = "length_ratio"
    DUPLICATE = "duplicate"
    TOO_LONG = "too_long"


# Valid rows that a filter drops, that are longer than data.truncation allows, or that prefer neither answer.
NOT_BAD = frozenset({
    Reason.TIE, Reason.SINGLE_ANSWER, Reason.LOW_CONFIDENCE, Reason.LOW_SCORE_GAP, Reason.LOW_AGREEMENT, Reason.CONDITION, Reason.LENGTH_RATIO,
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


class Unusable(Exception):
    """Carries a Rejection out of the code that reads a row; never leaves this package."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.rejection = Rejection(reason, detail)


@dataclass(frozen=True)
class Message:
    """One turn of a chat.

    reasoning: thoughts that a row has beside the content (reasoning_content, thinking). tool_calls: as the row gives them, each an
    object with a name and arguments, within "function" or not. others: further keys that templates read (name, tool_call_id).
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    others: tuple[tuple[str, str], ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the turn says nothing: neither text nor a tool call."""
        return not self.content.strip() and not self.tool_calls

    @property
    def characters(self) -> int:
        """Length of all its texts."""
        return len(self.content) + len(self.reasoning) + (len(str(self.tool_calls)) if self.tool_calls else 0)


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

    @property
    def characters(self) -> int:
        """Length of the prompt and the answers together."""
        return len(self.prompt) + len(self.chosen or "") + len(self.rejected or "")


@dataclass(frozen=True)
class ChatPair:
    """Chat messages: each answer is one assistant turn after the prompt's messages. tools: those that the prompt offers."""

    prompt: tuple[Message, ...]
    chosen: Message | None
    rejected: Message | None
    score_gap: float | None = None
    agreement: float | None = None
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def answers(self) -> tuple[Message, ...]:
        """The one or two answers, chosen first."""
        return tuple(answer for answer in (self.chosen, self.rejected) if answer is not None)

    @property
    def characters(self) -> int:
        """Length of the messages, the answers and the tools together."""
        tools = len(str(self.tools)) if self.tools else 0
        return sum(turn.characters for turn in (*self.prompt, *self.answers)) + tools


Pair = TextPair | ChatPair
