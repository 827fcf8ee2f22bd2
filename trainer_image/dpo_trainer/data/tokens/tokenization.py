"""Pairs of text or chat messages into token ids.

Plain text (formats pairs and dialogue) is tokenized without a chat template, also when the tokenizer has one. The beginning
that the tokenizer puts before a text (BOS, where it has one) is put there once; strings in the data that look like special
tokens are spelled out, never read as such; EOS ends each answer once.

Messages are rendered by the chat template, which writes its own special tokens. Nothing is added but EOS, and that only
when the template does not end the turn with a special token; white space that it puts after that token is left out.

Boundary: prompt + answer is tokenized as one text, and the answer is what follows the prompt's own tokens. When
a token spans the border, so that those are not a beginning of the whole, prompt and answers are tokenized separately, for
both answers, and the pair is counted as a boundary merge.

Tokenization is lossless, except for what the tokenizer itself changes: SentencePiece puts a space before a text (older
Llamas also behind added tokens) and takes its own sign for a space as one; some normalize Unicode, or drop what they don't know.

A chat whose template leaves out what a message holds is refused, by coverage.py.

Plain text that went through the template already (data.template.specialTokens: read) is read with its special tokens; BOS and EOS are
added only where it lacks them.

An unpaired example has one answer; everything above holds for it alone, and the other one has no tokens, not even EOS.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpo_operator.api.data import Template
from dpo_trainer.data.dataset import TokenPair
from dpo_trainer.data.formats import Pair, Rejection
from dpo_trainer.data.formats.pairs import ChatPair, Reason, TextPair
from dpo_trainer.data.tokens.chat_template import Chat, ChatTemplate, TemplateRefused
from dpo_trainer.data.tokens.encoding import Encoder
from dpo_trainer.data.tokens.templated import Templated
from dpo_trainer.data.tokens.truncation import Ids, Limits, truncate
from dpo_trainer.runtime.errors import TrainerError, first_line, invalid_configuration
from dpo_trainer.runtime.untrusted import CHAT_MEMORY, LONGEST_CHAT, Untrusted, limit_memory

# Pairs, and characters, that are tokenized together; a character needs some 250 bytes.
BATCH = 256
BATCH_CHARACTERS = 2_000_000

DEFAULTS = Template()

# Tokens of a prompt, and of the one or two answers that a pair has.
Tokenized = tuple[Ids, list[Ids]]


@dataclass
class Counts:
    """What happened to the pairs of one split.

    special_token_text: pairs whose text holds strings that look like special tokens; they were spelled out.
    lost_reasoning: chats of which the template left reasoning out, as data.template.keepReasoning allows.
    templated: pairs that are no plain text: chats, and texts whose special tokens are read.
    """

    truncated: int = 0
    boundary_merges: int = 0
    special_token_text: int = 0
    lost_reasoning: int = 0
    templated: int = 0


def load_tokenizer(folder: Path, label: str, chat_template: str | None = None) -> Any:
    """Tokenizer of a model folder, without code from it.

    chat_template: replaces the tokenizer's own.
    Raises TrainerError INVALID_CONFIGURATION when it can't be loaded.
    """
    from transformers import AutoTokenizer

    limit_memory()
    try:
        with Untrusted(f"{label}: loading the tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except TrainerError:
        raise
    except Exception as error:  # whatever a broken file makes the many tokenizer classes raise
        reason = first_line(error) or type(error).__name__
        raise invalid_configuration(f"{label}: the tokenizer can't be loaded: {reason}") from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


class PairTokenizer:
    """Turns pairs into token ids for one model.

    tokenizer: of transformers. end_tokens: the model's own end-of-sequence ids (from its configuration), used to see where a
    template ended a turn, and as EOS when the tokenizer names none. settings: spec.data.template.
    Raises TrainerError INVALID_CONFIGURATION when there is no EOS at all.
    """

    def __init__(
        self, tokenizer: Any, limits: Limits, end_tokens: Sequence[int] = (), settings: Template = DEFAULTS
    ) -> None:
        self._tokenizer = tokenizer
        self._reads_special = settings.special_tokens == "read"
        self._limits = limits
        eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else next(iter(end_tokens), None)
        if eos is None:
            raise invalid_configuration(
                "the tokenizer has no end-of-sequence token, so the model could not learn where an answer ends; set eos_token in "
                "tokenizer_config.json"
            )
        self.eos = int(eos)
        self.begin = _begin_tokens(tokenizer)
        # Turn ends such as <|eot_id|> are special tokens without a name, which all_special_ids leaves out.
        unnamed = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = set(tokenizer.all_special_ids) | set(unnamed) | set(end_tokens) | {self.eos}
        control = {text for text in (*tokenizer.all_special_tokens, *unnamed.values()) if text}
        self._encoder = Encoder(tokenizer, self._special, control)
        self.templated = Templated(tokenizer, control, settings)
        self._template = ChatTemplate(tokenizer, self._encoder, settings)
        self.counts = Counts()

    def run(self, pairs: Iterable[tuple[int, Pair]]) -> Iterator[tuple[int, TokenPair | Rejection]]:
        """Token pairs, or why there is none, in the order of the (row number, pair) tuples; counts are added to `counts`."""
        batch: list[tuple[int, Pair]] = []
        size = 0
        for item in pairs:
            batch.append(item)
            size += item[1].characters
            if len(batch) == BATCH or size >= BATCH_CHARACTERS:
                yield from self._run_batch(batch)
                batch, size = [], 0
        yield from self._run_batch(batch)

    def _run_batch(self, batch: list[tuple[int, Pair]]) -> Iterator[tuple[int, TokenPair | Rejection]]:
        if not batch:
            return
        first, last = batch[0][0], batch[-1][0]
        with Untrusted(f"tokenizing row {first}" if first == last else f"tokenizing rows {first} to {last}"):
            tokenize = self._tokenize_templated if self._reads_special else self._tokenize_texts
            texts = iter(list(tokenize([pair for _, pair in batch if isinstance(pair, TextPair)])))
            chats = iter(list(self._tokenize_chats([(row, pair) for row, pair in batch if isinstance(pair, ChatPair)])))
        for row, pair in batch:
            found = next(texts if isinstance(pair, TextPair) else chats)
            yield row, found if isinstance(found, Rejection) else self._finish(row, pair, *found)

    def _finish(self, row: int, pair: Pair, prompt: Ids, answers: list[Ids]) -> TokenPair | Rejection:
        chosen = [] if pair.chosen is None else answers[0]
        rejected = [] if pair.rejected is None else answers[-1]
        keep = 1 if self._tokenizer.bos_token_id is not None and prompt[:1] == [self._tokenizer.bos_token_id] else 0
        cut = truncate(prompt, chosen, rejected, self._limits, keep)
        if cut is None:
            return Rejection(Reason.TOO_LONG, self._too_long(prompt, chosen, rejected))
        if cut[1] == cut[2]:
            if (cut[1], cut[2]) == (chosen, rejected):
                by = "the tokenizer makes" if isinstance(pair, TextPair) else "the chat template and the tokenizer make"
                return Rejection(Reason.EQUAL_ANSWERS, f"{by} the same tokens of both answers")
            detail = f"the answers are the same in their first {len(cut[1])} tokens, and data.maxLength leaves no more"
            return Rejection(Reason.EQUAL_AFTER_TRUNCATION, detail)
        truncated = cut != (prompt, chosen, rejected)
        self.counts.truncated += truncated
        prompt_ids, chosen_ids, rejected_ids = (np.array(part, dtype=np.int32) for part in cut)
        gap = math.nan if pair.score_gap is None else float(pair.score_gap)
        return TokenPair(prompt_ids, chosen_ids, rejected_ids, row, truncated, gap)

    def _too_long(self, prompt: Ids, chosen: Ids, rejected: Ids) -> str:
        limits = self._limits
        most = "" if limits.max_prompt_length is None else f", data.maxPromptLength {limits.max_prompt_length}"
        longest = max(len(chosen), len(rejected))
        return f"{len(prompt)} tokens of prompt and {longest} of answer; data.maxLength is {limits.max_length}{most}"

    def _tokenize_texts(self, pairs: list[TextPair]) -> Iterator[Tokenized | Rejection]:
        answers = [_answers(pair) for pair in pairs]
        self.counts.special_token_text += sum(
            any(self._encoder.special_in(text) for text in (pair.prompt, *given.values()))
            for pair, given in zip(pairs, answers, strict=True)
        )
        texts = [
            pair.prompt + text for pair, given in zip(pairs, answers, strict=True) for text in ("", *given.values())
        ]
        encoded = iter(self._encoder.texts(texts))
        for given in answers:
            prompt, *whole = (next(encoded) for _ in range(1 + len(given)))
            found = self._split(prompt, whole)
            if found is None:
                self.counts.boundary_merges += 1
                found = [self._encoder.rest_of_text(text) for text in given.values()]
            parts = ((Reason.EMPTY_PROMPT, self.begin + prompt), *zip(given, found, strict=True))
            if empty := [reason for reason, ids in parts if not ids]:
                yield Rejection(empty[0], "the tokenizer makes no token of the text")
                continue
            yield self.begin + prompt, [[*ids, self.eos] for ids in found]

    def _tokenize_templated(self, pairs: list[TextPair]) -> Iterator[Tokenized | Rejection]:
        """Tokens of texts that a chat template wrote."""
        self.counts.templated += len(pairs)
        for pair in pairs:
            answers = _answers(pair)
            texts = [pair.prompt, *(pair.prompt + text for text in answers.values())]
            prompt, *whole = self._encoder.chats(texts, [False] * len(texts))
            found = self._split(prompt, whole)
            if found is None:
                self.counts.boundary_merges += 1
                found = [self._encoder.rest_of_chat(text, marked=False) for text in answers.values()]
            ended = {reason: self._end_turn(ids) for reason, ids in zip(answers, found, strict=True)}
            if empty := [reason for reason, ids in ended.items() if not ids]:
                yield Rejection(empty[0], "the tokenizer makes no token of the text")
                continue
            begin = [] if prompt[: len(self.begin)] == self.begin else self.begin
            yield begin + prompt, [*ended.values()]

    @staticmethod
    def _split(prompt: Ids, whole: list[Ids]) -> list[Ids] | None:
        """Answers behind a prompt; None when the prompt's tokens do not begin them all, or an answer would be empty."""
        size = len(prompt)
        if any(len(full) <= size or full[:size] != prompt for full in whole):
            return None
        return [full[size:] for full in whole]

    def _tokenize_chats(self, pairs: list[tuple[int, ChatPair]]) -> Iterator[Tokenized | Rejection]:
        self.counts.templated += len(pairs)
        chats = [self._render(row, pair) for row, pair in pairs]
        written = [(text, c.looks_special) for c in chats if isinstance(c, Chat) for text in (c.prompt, *c.whole)]
        encoded = iter(self._encoder.chats([text for text, _ in written], [marked for _, marked in written]))
        for chat in chats:
            if isinstance(chat, Rejection):
                yield chat
                continue
            self.counts.special_token_text += chat.looks_special
            self.counts.lost_reasoning += chat.lost_reasoning
            prompt, *whole = (next(encoded) for _ in range(1 + len(chat.whole)))
            answers = self._split(prompt, whole)
            if answers is None:
                self.counts.boundary_merges += 1
                tails = (text[len(chat.prompt) :] for text in chat.whole)
                answers = [self._encoder.rest_of_chat(tail, marked=chat.looks_special) for tail in tails]
            ended = [self._end_turn(answer) for answer in answers]
            if prompt and all(ended):
                yield prompt, ended
            else:
                yield Rejection(Reason.TEMPLATE_ERROR, "the chat template leaves the prompt or an answer out")

    def _render(self, row: int, pair: ChatPair) -> Chat | Rejection:
        try:
            with Untrusted(f"rendering the chat template for row {row}", LONGEST_CHAT, memory=CHAT_MEMORY):
                return self._template.render(pair)
        except TemplateRefused as refused:
            return Rejection(refused.reason, str(refused))

    def _end_turn(self, answer: Ids) -> Ids:
        """The answer with one end: what the template wrote, without white space after it, or EOS; empty when nothing else is."""
        end = len(answer)
        while end > 0 and self._is_space(answer[end - 1]):
            end -= 1
        ended = answer[:end] if end > 0 and answer[end - 1] in self._special else [*answer, self.eos]
        return ended if any(token not in self._special and not self._is_space(token) for token in ended) else []

    def _is_space(self, token: int) -> bool:
        return token not in self._special and not self._tokenizer.decode(token).strip()


def _begin_tokens(tokenizer: Any) -> Ids:
    """Ids that the tokenizer puts before a text, found by comparing with and without them."""
    bare: Ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: Ids = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), None)
    if not bare or start is None:
        raise invalid_configuration(
            "the tokenizer gives different tokens for the same text with and without special tokens"
        )
    return whole[:start]


def _answers(pair: TextPair) -> dict[Reason, str]:
    """Texts of the answers that a pair has, chosen first, by the reason for which an empty one is left out."""
    both = {Reason.EMPTY_CHOSEN: pair.chosen, Reason.EMPTY_REJECTED: pair.rejected}
    return {reason: text for reason, text in both.items() if text is not None}
