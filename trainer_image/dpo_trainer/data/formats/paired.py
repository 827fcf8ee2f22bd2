"""Readers for rows with explicit chosen and rejected answers, or with one answer and a label."""

from collections.abc import Mapping
from typing import Any

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats.compose import Field, Style, compose
from dpo_trainer.data.formats.pairs import Pair, Reason, Unusable
from dpo_trainer.data.formats.values import kind, lookup, number, present, required

STYLES: dict[str, Style] = {"pairs": "text", "messages": "chat", "dialogue": "dialogue"}

# Default column names of completion and label.
CONVERSATIONS = ("messages", "conversations", "conversation")
_COMPLETIONS = (*CONVERSATIONS, "response")
_LABELS = ("kto_tag",)
# Columns of the good and the bad answer that are known when none of the two is mapped: ms-swift, LLaMA-Factory v1, NeMo-Aligner
# and OpenAI's fine-tuning.
_KNOWN = (
    ("chosen_messages", "rejected_messages"),
    ("messages", "rejected_messages"),
    ("messages", "rejected_response"),
    ("chosen_response", "rejected_response"),
    ("response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
)
COLUMNS = frozenset((*_COMPLETIONS, *_LABELS, *(name for names in _KNOWN for name in names)))
_WORDS = {
    "true": True, "yes": True, "good": True, "desirable": True, "chosen": True,
    "false": False, "no": False, "bad": False, "undesirable": False, "rejected": False,
}  # fmt: skip


def read_paired(row: Mapping[str, Any], columns: Columns, row_format: str) -> Pair:
    """Pair of a row with a chosen and a rejected answer. Raises Unusable."""
    chosen, rejected = (Field(required(row, name), name) for name in paired_columns(row, columns))
    scores = [number(lookup(row, name)) for name in (columns.chosen_score, columns.rejected_score)]
    gap = None if scores[0] is None or scores[1] is None else scores[0] - scores[1]
    return compose(row, columns, chosen, rejected, STYLES[row_format], score_gap=gap)


def paired_columns(row: Mapping[str, Any], columns: Columns) -> tuple[str, str]:
    """Names of the columns of the preferred and the other answer."""
    wanted = (columns.chosen, columns.rejected)
    if columns.mapped & {"chosen", "rejected"}:
        return wanted
    return next((names for names in (wanted, *_KNOWN) if len(present(row, names)) == 2), wanted)


def read_unpaired(row: Mapping[str, Any], columns: Columns) -> Pair:
    """One answer as a pair whose other side is None. Raises Unusable."""
    completion, label = unpaired_columns(row, columns)
    answer = Field(required(row, completion), completion)
    desirable = _desirable(required(row, label), label)
    return compose(row, columns, answer if desirable else None, None if desirable else answer)


def unpaired_columns(row: Mapping[str, Any], columns: Columns) -> tuple[str, str]:
    """Names of the columns of the answer and of its label."""
    mapped = columns.mapped
    completions = (columns.completion, *(() if "completion" in mapped else _COMPLETIONS))
    labels = (columns.label, *(() if "label" in mapped else _LABELS))
    completion, label = (next(iter(present(row, names)), names[0]) for names in (completions, labels))
    return completion, label


def _desirable(value: Any, name: str) -> bool:
    if isinstance(value, str):
        found = _WORDS.get(value.strip().lower())
        if found is not None:
            return found
    if isinstance(value, bool):
        return value
    if (found_number := number(value)) in (0.0, 1.0):
        return bool(found_number)
    raise Unusable(
        Reason.WRONG_TYPE, f"{name}: expected true or false, 1 or 0, yes or no, good or bad; found {_shown(value)}"
    )


def _shown(value: Any) -> str:
    found = number(value)
    return kind(value) if isinstance(value, str) or found is None else f"{found:g}"
