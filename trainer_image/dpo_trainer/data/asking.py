"""Prompts out of rows: of preference data, whose answers are ignored, or of rows that hold prompts alone."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dpo_operator.api.data import Columns
from dpo_trainer.data.dataset import TokenIds
from dpo_trainer.data.formats import Format, Pair, Rejection, detect, normalize
from dpo_trainer.data.formats.chats import as_message, conversation, is_chat
from dpo_trainer.data.formats.compose import Field, compose, find_prompt
from dpo_trainer.data.formats.pairs import ChatPair, Message, Reason, TextPair, Unusable
from dpo_trainer.data.formats.values import kind, lookup, messages_of
from dpo_trainer.data.prompts import Prompt
from dpo_trainer.data.rows import Rows
from dpo_trainer.data.tally import Tally
from dpo_trainer.data.tokens.tokenization import PairTokenizer

# Rows from which it is seen whether they are pairs.
_HEAD = 64
# Stands for the answer, which a prompt's tokens do not depend on.
_ANSWER = "."
_NO_IDS = np.zeros(0, dtype=np.int32)


@dataclass
class Asked:
    """The different prompts of rows that are read as pairs, collected on their way to tokens. answer_column: of the right answer; None without.

    found: by their token ids, in the order of the rows.
    """

    answer_column: str | None = None
    found: dict[bytes, Prompt] = field(default_factory=dict)
    _waiting: dict[int, Prompt] = field(default_factory=dict)

    def note(self, number: int, row: Any, pair: Pair) -> None:
        """A row that is a pair, before it is tokens."""
        tools = () if isinstance(pair, TextPair) else pair.tools
        self._waiting[number] = Prompt(_NO_IDS, number, _shown(pair), _expected(row, self.answer_column), tools)

    def take(self, number: int, ids: TokenIds) -> Prompt:
        """The prompt of a row that was noted, as tokens."""
        prompt = replace(self._waiting.pop(number), ids=ids)
        self.found.setdefault(ids.tobytes(), prompt)
        return prompt

    def end(self) -> None:
        """No more rows of this source come: those that became no tokens are forgotten."""
        self._waiting.clear()


def read_prompts(
    rows: Rows,
    columns: Columns,
    tokenizer: PairTokenizer,
    tally: Tally,
    *,
    answer_column: str | None = None,
    limit: int | None = None,
) -> Iterator[Prompt]:
    """Prompts of the rows, as the policy reads them. columns.prompt: column of the prompt, where it is named.

    Rows without a usable prompt go to the tally. Tokens are those that the prompt of a pair has.
    """
    items = iter(rows)
    head = list(itertools.islice(items, min(_HEAD, limit or _HEAD)))
    row_format = None if columns.prompt is not None else detect(head, columns)
    asked = Asked(answer_column)

    def pairs() -> Iterator[tuple[int, Pair]]:
        for number, row in enumerate(itertools.islice(itertools.chain(head, items), limit)):
            tally.rows = number + 1
            found = row if isinstance(row, Rejection) else _asking(row, row_format, columns)
            if isinstance(found, Rejection):
                tally.drop(number, found)
                continue
            asked.note(number, row, found)
            yield number, found

    for number, item in tokenizer.run(pairs()):
        if isinstance(item, Rejection):
            tally.drop(number, item)
            continue
        yield asked.take(number, item.prompt)


def different(prompts: Iterable[Prompt], *, longest: int, without: set[bytes]) -> tuple[list[Prompt], dict[str, int]]:
    """Each prompt once, by its tokens, and how many were left out, by reason.

    longest: tokens of a prompt that leave room for an answer. without: ids of prompts that are not to be answered: those of the evaluation.
    """
    kept: dict[bytes, Prompt] = {}
    left_out: Counter[str] = Counter()
    for prompt in prompts:
        ids = prompt.ids.tobytes()
        if len(prompt.ids) > longest:
            left_out["too_long"] += 1
        elif ids in without:
            left_out["in_evaluation"] += 1
        elif ids in kept:
            left_out["duplicate"] += 1
        else:
            kept[ids] = prompt
    return list(kept.values()), dict(left_out)


def _asking(row: Any, row_format: Format | None, columns: Columns) -> Pair | Rejection:
    """The prompt of a row as a pair with one answer that stands for any."""
    if not isinstance(row, Mapping):
        return Rejection(Reason.NOT_AN_OBJECT, f"expected an object with columns, found {kind(row)}")
    try:
        if row_format is not None:
            found = normalize(row, row_format, columns)
        else:
            found = compose(_unanswered(row, columns), columns, Field(_ANSWER, "answer"), None)
    except Unusable as unusable:
        return unusable.rejection
    if isinstance(found, Rejection):
        return found
    if isinstance(found, TextPair):
        return TextPair(found.prompt, _ANSWER, None)
    return ChatPair(found.prompt, Message("assistant", _ANSWER), None, tools=found.tools)


def _unanswered(row: Mapping[str, Any], columns: Columns) -> Mapping[str, Any]:
    """A row whose chat ends with its last question. Raises Unusable."""
    asked = find_prompt(row, columns)
    if asked is None or not is_chat(asked.value):
        return row
    turns = conversation(asked.value, asked.name, "user")
    end = len(turns)
    while end and turns[end - 1].role == "assistant":
        end -= 1
    if not end:
        raise Unusable(Reason.EMPTY_PROMPT, f"{asked.name}: the messages hold no question")
    value = messages_of(asked.value)
    return {**row, asked.name: (value if isinstance(value, list) else [value])[:end]}


def _shown(pair: Pair) -> str | list[dict[str, Any]]:
    """What the judge reads of a prompt: all that the policy's chat template is given of it, the tools aside."""
    return pair.prompt if isinstance(pair, TextPair) else [as_message(turn) for turn in pair.prompt]


def _expected(row: Any, column: str | None) -> str | None:
    value = lookup(row, column) if column is not None and isinstance(row, Mapping) else None
    return None if value is None else str(value)
