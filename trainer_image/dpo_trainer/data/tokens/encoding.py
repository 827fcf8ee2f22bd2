"""Text into token ids: special tokens in data are spelled out, and a continuation gets no space before it."""

import re
from collections.abc import Iterator
from typing import Any

from dpo_trainer.data.tokens.truncation import Ids

# Around the text of a special token in a message. Unicode keeps them for such use within a program, so data have none.
START, END = "\ufdd0", "\ufdd1"


class Encoder:
    """A tokenizer wrapper that adds no special tokens.

    special: ids of its special tokens. control: their texts.
    """

    def __init__(self, tokenizer: Any, special: set[int], control: set[str]) -> None:
        self._tokenizer = tokenizer
        # What the tokenizer doesn't know becomes a special token too, which means nothing unless the text names it.
        self._forbidden = special - {tokenizer.unk_token_id}
        self._unknown = (tokenizer.unk_token_id, tokenizer.unk_token)
        tokens = "|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)"
        self._control = re.compile(tokens)
        self._marked = re.compile(f"{START}({tokens}){END}|[{START}{END}]")
        # SentencePiece puts a space before a text.
        self._prefixes = self._encode(["\na"], plain=True)[0][len(self._lead) :] != self._encode(["a"], plain=True)[0]

    @property
    def _lead(self) -> Ids:
        return self._encode(["\n"], plain=True)[0]

    def texts(self, texts: list[str]) -> list[Ids]:
        """Token ids of texts in which special tokens are spelled out."""
        found = zip(texts, self._encode(texts, plain=True), strict=True)
        return [self._spelled(text) if self._reads_special(text, ids) else ids for text, ids in found]

    def rest_of_text(self, text: str) -> Ids:
        """Token ids of a continuation: no space is put before it. Special tokens are spelled out."""
        return self._spelled(text, continues=True)

    def chats(self, texts: list[str], marked: list[bool]) -> list[Ids]:
        """Token ids of what a template wrote, special tokens included, but for those between marks in marked texts."""
        found = self._encode(["" if marks else text for text, marks in zip(texts, marked, strict=True)], plain=False)
        each = zip(texts, marked, found, strict=True)
        return [self._pieces(text) if marks else ids for text, marks, ids in each]

    def rest_of_chat(self, text: str, *, marked: bool) -> Ids:
        """Token ids of a continuation of a chat."""
        return self._pieces(text, continues=True) if marked else self._after(text, plain=False)

    def mark(self, text: str, without: frozenset[str] = frozenset()) -> str:
        """The text with marks around what looks like a special token. without: tokens that get none."""
        return self._control.sub(lambda found: found[0] if found[0] in without else f"{START}{found[0]}{END}", text)

    def special_in(self, text: str) -> list[str]:
        """What looks like a special token in a text."""
        return self._control.findall(text)

    def _encode(self, texts: list[str], *, plain: bool) -> list[Ids]:
        if not texts:
            return []
        out = self._tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=plain,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[Ids] = out["input_ids"]
        return ids

    def _after(self, text: str, *, plain: bool) -> Ids:
        """Token ids of a continuation."""
        if self._prefixes:
            lead, ids = self._lead, self._encode(["\n" + text], plain=plain)[0]
            if ids[: len(lead)] == lead:
                return ids[len(lead) :]
        return self._encode([text], plain=plain)[0]

    def _pieces(self, text: str, *, continues: bool = False) -> Ids:
        """Marked text: what is between two marks is spelled out; lone marks, which a template left, go."""
        ids: Ids = []
        for piece, special in _split(self._marked, text):
            behind = continues or bool(ids)
            if special:
                ids += self._spelled(piece, continues=behind)
            else:
                ids += self._after(piece, plain=False) if behind else self._encode([piece], plain=False)[0]
        return ids

    def _spelled(self, text: str, *, continues: bool = False) -> Ids:
        """Token ids of text, none of them special. While the tokenizer yields a special token, the text is split in half.

        Unigram models yield special tokens even when they are asked to split them.
        """
        ids = self._after(text, plain=True) if continues else self._encode([text], plain=True)[0]
        if len(text) < 2 or not self._reads_special(text, ids):
            return ids
        half = len(text) // 2
        return self._spelled(text[:half], continues=continues) + self._spelled(text[half:], continues=True)

    def _reads_special(self, text: str, ids: Ids) -> bool:
        unknown, name = self._unknown
        return not self._forbidden.isdisjoint(ids) or (name is not None and name in text and unknown in ids)


def _split(marked: re.Pattern[str], text: str) -> Iterator[tuple[str, bool]]:
    """Pieces of a marked text, and whether each is the text of a special token."""
    end = 0
    for found in marked.finditer(text):
        if found.start() > end:
            yield text[end : found.start()], False
        if found[1] is not None:
            yield found[1], True
        end = found.end()
    if end < len(text):
        yield text[end:], False
