"""Text that went through a chat template already: its special tokens would be spelled out, or written twice."""

import re
from collections.abc import Iterable
from typing import Any

from dpo_operator.api.data import Template
from dpo_trainer.data.formats import Pair, Rejection
from dpo_trainer.data.formats.pairs import Reason, TextPair
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.untrusted import CHAT_MEMORY, LONGEST_CHAT, Untrusted

# How well-known templates begin a turn. [INST] is not among them, because Llama 2 has it as plain text.
_TURNS = re.compile(
    r"<\|im_start\|>(?:system|user|assistant)|<\|start_header_id\|>(?:system|user|assistant)|<start_of_turn>(?:user|model)"
    r"|<\|turn>(?:system|user|model)|<[|｜](?:System|User|Assistant|system|user|assistant)[|｜]>|<\|START_OF_TURN_TOKEN\|>"
    r"|<\|start\|>(?:system|developer|user|assistant)|\[gMASK\]<sop>"
)
_WORD = "xqword"


class Templated:
    """Sees such text. tokenizer: of transformers. control: texts of its special tokens. settings: spec.data.template."""

    def __init__(self, tokenizer: Any, control: set[str], settings: Template) -> None:
        self._begin, self._eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)")
        self._ends = tuple(control)
        self._special_tokens = settings.special_tokens
        self._added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
        self._own = _example(tokenizer)
        self._turns = self._own_turns()

    def check(self, pair: Pair) -> Rejection | None:
        """Why a pair is refused, if it is."""
        if self._special_tokens == "spell":
            return None
        is_text = isinstance(pair, TextPair)
        prompts, answers = _contents(pair)
        read = is_text and self._special_tokens == "read"
        if (foreign := self._foreign([*prompts, *answers])) is not None and (self._own or not read):
            return _rejection(
                f"{foreign}, as another model's chat template writes it; give messages, or text without it"
            )
        if read:
            return None
        sign = self._sign(prompts, answers)
        if sign is None and self._begin and is_text and prompts[0].startswith(self._begin):
            sign = self._begin
        if sign is None:
            return None
        way = "set data.template.specialTokens to read, which takes special tokens in plain text as such, or give messages without them"
        if not is_text:
            way = "leave what the template writes out of the messages' content"
        return _rejection(f"{sign}, as a text that went through the chat template already; {way}")

    def _sign(self, prompts: list[str], answers: list[str]) -> str | None:
        """What shows that texts went through this model's template, or one with the same tokens."""
        for text in (*prompts, *answers):
            for turn in self._turns:
                if turn in text:
                    return turn
            if (found := turn_in(text)) is not None:
                return found
        ends = (next((end for end in self._ends if text.rstrip().endswith(end)), None) for text in answers)
        return next((end for end in ends if end is not None), None)

    def _foreign(self, texts: Iterable[str]) -> str | None:
        """The beginning of a turn that this model's template does not write, and of which no part is a token."""
        for text in texts:
            for found in _TURNS.finditer(text):
                if found[0] not in self._own and not any(token in found[0] for token in self._added):
                    return found[0]
        return None

    def _own_turns(self) -> list[str]:
        """How this model's template begins a user's turn and an answer, from the last special token on."""
        before, mark, after = self._own.partition(_WORD)
        turns = []
        for text in (before, after) if mark else ():
            starts = [found.start() for found in self._control.finditer(text)]
            turn = text[starts[-1] :].strip() if starts else ""
            if turn not in ("", self._begin, self._eos):
                turns.append(turn)
        return turns


def _example(tokenizer: Any) -> str:
    """A question as the tokenizer's template writes it; nothing without a template."""
    contents: tuple[Any, ...] = (_WORD, [{"type": "text", "text": _WORD}])
    written = (_written(tokenizer, content) for content in contents if tokenizer.chat_template)
    return next((text for text in written if _WORD in text), "")


def _written(tokenizer: Any, content: Any) -> str:
    ask = [{"role": "user", "content": content}]
    try:
        with Untrusted("rendering the chat template for a question", LONGEST_CHAT, memory=CHAT_MEMORY):
            return str(tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True))
    except TrainerError:  # it took too much memory
        raise
    except Exception:  # a template can raise whatever its expressions do; that is told where a row needs it
        return ""


def _contents(pair: Pair) -> tuple[list[str], list[str]]:
    """Texts of the prompt, and of the answers."""
    if isinstance(pair, TextPair):
        return [pair.prompt], [text for text in (pair.chosen, pair.rejected) if text is not None]
    return [turn.content for turn in pair.prompt], [turn.content for turn in pair.answers]


def _rejection(found: str) -> Rejection:
    quoted = "when the data only quote it, set data.template.specialTokens to spell"
    return Rejection(Reason.TEMPLATED_TEXT, f"prompt or answer holds {found}; {quoted}")


def turn_in(text: str) -> str | None:
    """The beginning of a turn in a text, as well-known chat templates write it."""
    found = _TURNS.search(text)
    return None if found is None else found[0]
