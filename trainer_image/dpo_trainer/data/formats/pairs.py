"""Results of reading a row: a pair, or a Rejection with its reason."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

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
    TEMPLATE_ERROR = "template_error"
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

    @property
    def characters(self) -> int:
        """Length of the prompt and the answers together."""
        return len(self.prompt) + len(self.chosen or "") + len(self.rejected or "")


@dataclass(frozen=True)
class ChatPair:
    """Chat messages: the answers are the contents of one assistant turn after the prompt's messages."""

    prompt: tuple[Message, ...]
    chosen: str | None
    rejected: str | None
    score_gap: float | None = None
    agreement: float | None = None

    @property
    def characters(self) -> int:
        """Length of the messages and the answers together."""
        return sum(len(turn.content) for turn in self.prompt) + len(self.chosen or "") + len(self.rejected or "")


Pair = TextPair | ChatPair
