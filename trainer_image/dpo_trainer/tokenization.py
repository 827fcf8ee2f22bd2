"""Pairs of text or chat messages into token ids.

Plain text (formats pairs and dialogue) is tokenized without a chat template, also when the tokenizer has one. The beginning
that the tokenizer puts before a text (BOS, where it has one) is put there once; strings in the data that look like special
tokens are spelled out, never read as such; EOS ends each answer once.

Messages are rendered by the chat template, which writes its own special tokens. Nothing is added but EOS, and that only
when the template does not end the turn with a special token; white space that it puts after that token is left out.

Where the prompt ends: prompt + answer is tokenized as one text, and the answer is what follows the prompt's own tokens. When
a token spans the border, so that those are not a beginning of the whole, prompt and answers are tokenized apart, both answers
alike, and the pair is counted as a boundary merge.

An unpaired example has one answer; everything above holds for it alone, and the other one has no tokens, not even EOS.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from dpo_trainer.dataset import TokenPair
from dpo_trainer.errors import TrainerError, invalid_configuration
from dpo_trainer.formats import ChatPair, Message, Pair, Reason, Rejection, TextPair
from dpo_trainer.truncation import Ids, Limits, truncate

BATCH = 256

# Tokens of a prompt, and of the one or two answers that a pair has.
Tokenized = tuple[Ids, list[Ids]]


@dataclass
class Counts:
    """What happened to the pairs of one split.

    special_token_text: chats whose text holds strings that look like special tokens; they were spelled out.
    """

    truncated: int = 0
    boundary_merges: int = 0
    special_token_text: int = 0


def load_tokenizer(folder: Path, label: str, chat_template: str | None = None) -> Any:
    """Tokenizer of a model folder, without code from it.

    chat_template: replaces the tokenizer's own.
    Raises TrainerError INVALID_CONFIGURATION when it can't be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a broken file makes the many tokenizer classes raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise invalid_configuration(f"{label}: the tokenizer can't be loaded: {reason}") from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


class PairTokenizer:
    """Turns pairs into token ids for one model.

    tokenizer: of transformers. end_tokens: the model's own end-of-sequence ids (from its configuration), used to see where a
    template ended a turn, and as EOS when the tokenizer names none.
    Raises TrainerError INVALID_CONFIGURATION when there is no EOS at all.
    """

    def __init__(self, tokenizer: Any, limits: Limits, end_tokens: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
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
        self._control = tuple(text for text in {*tokenizer.all_special_tokens, *unnamed.values()} if text)
        self.counts = Counts()

    def run(self, pairs: Iterable[tuple[int, Pair]]) -> Iterator[tuple[int, TokenPair | Rejection]]:
        """Token pairs, or why there is none, in the order of the (row number, pair) tuples; counts are added to `counts`."""
        batch: list[tuple[int, Pair]] = []
        for item in pairs:
            batch.append(item)
            if len(batch) == BATCH:
                yield from self._run_batch(batch)
                batch = []
        yield from self._run_batch(batch)

    def _run_batch(self, batch: list[tuple[int, Pair]]) -> Iterator[tuple[int, TokenPair | Rejection]]:
        texts = iter(self._tokenize_texts([pair for _, pair in batch if isinstance(pair, TextPair)]))
        chats = iter(self._tokenize_chats([pair for _, pair in batch if isinstance(pair, ChatPair)]))
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
            detail = f"the answers are the same in their first {len(cut[1])} tokens, and data.maxLength leaves no more"
            if (cut[1], cut[2]) == (chosen, rejected):
                detail = "the answers have the same tokens"
            return Rejection(Reason.EQUAL_AFTER_TRUNCATION, detail)
        truncated = cut != (prompt, chosen, rejected)
        self.counts.truncated += truncated
        prompt_ids, chosen_ids, rejected_ids = (np.array(part, dtype=np.int32) for part in cut)
        return TokenPair(prompt_ids, chosen_ids, rejected_ids, row, truncated)

    def _too_long(self, prompt: Ids, chosen: Ids, rejected: Ids) -> str:
        limits = self._limits
        most = "" if limits.max_prompt_length is None else f", data.maxPromptLength {limits.max_prompt_length}"
        longest = max(len(chosen), len(rejected))
        return f"{len(prompt)} tokens of prompt and {longest} of answer; data.maxLength is {limits.max_length}{most}"

    def _encode(self, texts: list[str], *, plain: bool) -> list[Ids]:
        """Token ids of texts, nothing added. plain: special tokens in the text are spelled out."""
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
        return out["input_ids"]  # type: ignore[no-any-return]

    def _tokenize_texts(self, pairs: list[TextPair]) -> Iterator[Tokenized | Rejection]:
        answers = [_answers(pair) for pair in pairs]
        texts = [
            pair.prompt + text for pair, given in zip(pairs, answers, strict=True) for text in ("", *given.values())
        ]
        encoded = iter(self._encode(texts, plain=True))
        for given in answers:
            prompt, *whole = (next(encoded) for _ in range(1 + len(given)))
            found = self._split(prompt, whole)
            if found is None:
                self.counts.boundary_merges += 1
                found = self._encode(list(given.values()), plain=True)
            parts = ((Reason.EMPTY_PROMPT, self.begin + prompt), *zip(given, found, strict=True))
            if empty := [reason for reason, ids in parts if not ids]:
                yield Rejection(empty[0], "the tokenizer makes no token of the text")
                continue
            yield self.begin + prompt, [[*ids, self.eos] for ids in found]

    @staticmethod
    def _split(prompt: Ids, whole: list[Ids]) -> list[Ids] | None:
        """Answers behind a prompt; None when the prompt's tokens do not begin them all, or an answer would be empty."""
        size = len(prompt)
        if any(len(full) <= size or full[:size] != prompt for full in whole):
            return None
        return [full[size:] for full in whole]

    def _tokenize_chats(self, pairs: list[ChatPair]) -> Iterator[Tokenized | Rejection]:
        if pairs and not self._tokenizer.chat_template:
            raise no_template()
        rendered = [self._render(pair) for pair in pairs]
        encoded = iter(self._encode([text for r in rendered if isinstance(r, list) for text in r], plain=False))
        for pair, texts in zip(pairs, rendered, strict=True):
            if isinstance(texts, Rejection):
                yield texts
                continue
            ids: list[Ids] | Rejection = [next(encoded) for _ in texts]
            looks_special = any(token in text for token in self._control for text in _contents(pair))
            if looks_special:
                self.counts.special_token_text += 1
                ids = self._encode_safely(pair)
            yield ids if isinstance(ids, Rejection) else self._split_chat(pair, texts, ids, apart=not looks_special)

    def _render(self, pair: ChatPair) -> list[str] | Rejection:
        """Prompt with the generation prompt, and the whole conversations, as the template writes them."""
        try:
            return [
                self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=open_end)
                for chat, open_end in _chats(pair)
            ]
        except jinja2.TemplateSyntaxError as error:
            raise invalid_configuration(
                f"the chat template is not valid Jinja: {error.message} (line {error.lineno})"
            ) from error
        except Exception as error:  # a template can raise whatever its expressions do
            return Rejection(Reason.TEMPLATE_ERROR, f"the chat template refused the messages: {str(error)[:200]}")

    def _encode_safely(self, pair: ChatPair) -> list[Ids] | Rejection:
        """Token ids of a chat in whose text special tokens are spelled out; only those of the template are read as such."""
        # Older versions of transformers would take the option for a variable of the template and do nothing.
        if "sanitize_control_tokens" not in inspect.signature(self._tokenizer.apply_chat_template).parameters:
            return Rejection(
                Reason.TEMPLATE_ERROR,
                "a message holds the text of a special token, which this version of transformers can't spell out",
            )
        try:
            return [
                self._tokenizer.apply_chat_template(
                    chat, tokenize=True, return_dict=False, add_generation_prompt=open_end, sanitize_control_tokens=True
                )
                for chat, open_end in _chats(pair)
            ]
        except ValueError as error:
            return Rejection(Reason.TEMPLATE_ERROR, f"a message holds the text of a special token: {str(error)[:200]}")

    def _split_chat(self, pair: ChatPair, texts: list[str], ids: list[Ids], *, apart: bool) -> Tokenized | Rejection:
        """Prompt and answers. apart: whether the answers may be tokenized again, as text alone."""
        prompt, *whole = ids
        answers = self._split(prompt, whole)
        if answers is None and apart and all(text.startswith(texts[0]) for text in texts[1:]):
            self.counts.boundary_merges += 1
            answers = self._encode([text[len(texts[0]) :] for text in texts[1:]], plain=False)
        if answers is None:
            # Templates that open a block of thoughts for generation leave it out of finished turns. What they all share
            # is the prompt then; tokens that both answers share cancel in the loss anyway.
            closed = self._tokenizer.apply_chat_template(
                _chats(pair)[0][0], tokenize=False, add_generation_prompt=False
            )
            if not all(text.startswith(closed) for text in texts):
                return Rejection(
                    Reason.TEMPLATE_ERROR, "the chat template writes the prompt in another way when an answer follows"
                )
            size = min(_shared_length(prompt, full) for full in whole)
            prompt, answers = prompt[:size], [full[size:] for full in whole]
        ended = [self._end_turn(answer) for answer in answers]
        if not prompt or not all(ended):
            return Rejection(Reason.TEMPLATE_ERROR, "the chat template leaves the prompt or an answer out")
        return prompt, ended

    def _end_turn(self, answer: Ids) -> Ids:
        """The answer with one end: what the template wrote, without white space after it, or EOS."""
        end = len(answer)
        while end > 0 and answer[end - 1] not in self._special and not self._tokenizer.decode(answer[end - 1]).strip():
            end -= 1
        if end > 0 and answer[end - 1] in self._special:
            return answer[:end]
        return [*answer, self.eos] if answer else []


def no_template() -> TrainerError:
    """Messages can't become text without a template."""
    return invalid_configuration(
        "the data are chat messages, but the tokenizer has no chat template; set model.chatTemplate to the one that the model "
        "was fine-tuned with"
    )


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


def _chats(pair: ChatPair) -> list[tuple[list[dict[str, str]], bool]]:
    """Conversations to render, and whether each ends with the generation prompt."""
    prompt = list(pair.prompt)
    whole = [[*prompt, Message("assistant", text)] for text in _answers(pair).values()]
    return [
        ([{"role": m.role, "content": m.content} for m in chat], open_end)
        for chat, open_end in ((prompt, True), *((chat, False) for chat in whole))
    ]


def _answers(pair: Pair) -> dict[Reason, str]:
    """Texts of the answers that a pair has, chosen first, by the reason for which an empty one is left out."""
    both = {Reason.EMPTY_CHOSEN: pair.chosen, Reason.EMPTY_REJECTED: pair.rejected}
    return {reason: text for reason, text in both.items() if text is not None}


def _contents(pair: ChatPair) -> Iterator[str]:
    yield from (message.content for message in pair.prompt)
    yield from _answers(pair).values()


def _shared_length(one: Ids, other: Ids) -> int:
    """Length of the common beginning of two id lists."""
    limit = min(len(one), len(other))
    return next((i for i in range(limit) if one[i] != other[i]), limit)
