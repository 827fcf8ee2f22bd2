"""Render chats with the template, and split the prompt from the answer."""

import re
from dataclasses import dataclass
from typing import Any

import jinja2

from dpo_trainer.data.formats.pairs import ChatPair
from dpo_trainer.data.tokens.encoding import END, START, Encoder
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration

# Characters that a template may add to 4 times those of the messages.
LONGEST_TEXT = 1_000_000

Messages = list[dict[str, str]]


class TemplateRefused(Exception):
    """The template can't render a chat, or prompt and answer can't be split. The message says why."""


@dataclass(frozen=True)
class Chat:
    """prompt: text up to the answers. whole: prompt and answer, for each answer.

    looks_special: whether messages hold the text of special tokens; there are marks around it then.
    """

    prompt: str
    whole: list[str]
    looks_special: bool


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any, encoder: Encoder) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        added = sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        # Whether finished chats begin with the generation prompt: asked once, so that the same prompt has the same end in all pairs.
        self._goes_on: bool | None = None
        self._added = re.compile("|".join(re.escape(token) for token in added if token) or "(?!)")

    def render(self, pair: ChatPair) -> Chat:
        """A pair as text.

        Raises TemplateRefused, and TrainerError INVALID_CONFIGURATION when there is no template or it is not valid Jinja.
        """
        if not self._tokenizer.chat_template:
            raise no_template()
        answers = [text for text in (pair.chosen, pair.rejected) if text is not None]
        everything = [*(text for m in pair.prompt for text in (m.role, m.content)), *answers]
        looks_special = any(map(self._encoder.looks_special, everything))
        if looks_special and any(mark in text for text in everything for mark in (START, END)):
            raise TemplateRefused(
                "a message holds the text of a special token, and U+FDD0 or U+FDD1, which are no characters"
            )
        mark = self._encoder.mark if looks_special else str
        prompt = [{"role": mark(m.role), "content": mark(m.content)} for m in pair.prompt]
        opened = self._write(prompt, open_end=True)
        whole = [self._write(_answered(prompt, mark(answer))) for answer in answers]
        if self._goes_on is None:
            self._goes_on = self._write(_answered(prompt, "0")).startswith(opened)
        if not self._goes_on or not all(text.startswith(opened) for text in whole):
            opened = self._shared(prompt, [opened, *whole])
        return Chat(opened, whole, looks_special)

    def _shared(self, prompt: Messages, texts: list[str]) -> str:
        """The prompt when the generation prompt does not begin all chats: the beginning that all share.

        Templates that open a block of thoughts for generation leave it out of finished turns.
        """
        # Render with two other answers, so that a common beginning of both answers is not taken for the prompt.
        probes = [self._write(_answered(prompt, text)) for text in ("0", "1")]
        shared = _common_beginning([*texts, *probes])
        if not shared.startswith(self._write(prompt)):
            raise TemplateRefused("the chat template writes the prompt in another way when an answer follows")
        # Never within a special token.
        ends = [
            found.start() for text in texts for found in self._added.finditer(text)
            if found.start() < len(shared) < found.end()
        ]  # fmt: skip
        return shared[: min(ends, default=len(shared))]

    def _write(self, chat: Messages, *, open_end: bool = False) -> str:
        try:
            text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=open_end)
        except jinja2.TemplateSyntaxError as error:
            raise invalid_configuration(
                f"the chat template is not valid Jinja: {error.message} (line {error.lineno})"
            ) from error
        except MemoryError:
            raise
        except Exception as error:  # a template can raise whatever its expressions do
            raise TemplateRefused(f"the chat template refused the messages: {str(error)[:200]}") from error
        given = sum(len(text) for message in chat for text in message.values())
        if len(text) > LONGEST_TEXT + 4 * given:
            raise TemplateRefused(f"the chat template writes {len(text)} characters for messages of {given}")
        return str(text)


def no_template() -> TrainerError:
    """Messages can't become text without a template."""
    return invalid_configuration(
        "the data are chat messages, but the tokenizer has no chat template; set model.chatTemplate to the one that the model "
        "was fine-tuned with"
    )


def _answered(prompt: Messages, answer: str) -> Messages:
    return [*prompt, {"role": "assistant", "content": answer}]


def _common_beginning(texts: list[str]) -> str:
    # The common beginning of the smallest and the largest text is common to all.
    one, other = min(texts), max(texts)
    return one[
        : next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    ]
