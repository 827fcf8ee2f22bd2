"""Conversations of which every word is there once, written as rows of all formats, and a look for them in the tokens."""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats import Rejection, detect, normalize
from dpo_trainer.data.tokens.tokenization import PairTokenizer

# A word begins and ends with a sign that no template writes, so that it is found whole or not at all.
WORD = re.compile(r"§\d+§")
_JOINTS = (
    " ",
    "\n",
    "\n\n",
    "\t",
    " é 漢字 👍🏽 ",
    " <b> & \"'\\ ",
    "</s>",
    "<|im_end|>",
    "<|im_start|>",
    " {{ x }} ",
    "<|eot_id|>",
    "\r\n",
)


@dataclass(frozen=True)
class Turn:
    """A message of a row. thought: within the content, before its text. reasoning: beside it. calls: tool calls."""

    role: str
    text: str
    thought: str = ""
    reasoning: str = ""
    calls: tuple[dict[str, Any], ...] = ()

    @property
    def content(self) -> str:
        return f"<think>\n{self.thought}\n</think>\n\n{self.text}" if self.thought else self.text

    def message(self, key: str = "reasoning_content") -> dict[str, Any]:
        extra: dict[str, Any] = {key: self.reasoning} if self.reasoning else {}
        extra |= {"tool_calls": [*self.calls]} if self.calls else {}
        return {"role": self.role, "content": self.content, **extra}


@dataclass(frozen=True)
class Talk:
    """A conversation with two answers. system: of a column. tools: of a column. key: of reasoning."""

    prompt: tuple[Turn, ...]
    chosen: Turn
    rejected: Turn
    system: str = ""
    tools: tuple[dict[str, Any], ...] = field(default=())
    key: str = "reasoning_content"

    @property
    def extra(self) -> dict[str, Any]:
        return ({"system": self.system} if self.system else {}) | ({"tools": [*self.tools]} if self.tools else {})

    def messages(self, *turns: Turn) -> list[dict[str, Any]]:
        return [turn.message(self.key) for turn in turns]

    @property
    def simple(self) -> bool:
        """Whether there is nothing but text of a user, and of two answers."""
        turns = (*self.prompt, self.chosen, self.rejected)
        return (
            not self.extra
            and len(self.prompt) == 1
            and not any(turn.reasoning or turn.calls or turn.thought for turn in turns)
        )


def _sharegpt(talk: Talk) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}

    def turn(message: dict[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}
        return {"from": names.get(message["role"], message["role"]), "value": message["content"], **rest}

    prompt, (good, bad) = talk.messages(*talk.prompt), talk.messages(talk.chosen, talk.rejected)
    return {"conversations": [*map(turn, prompt)], "chosen": turn(good), "rejected": turn(bad), **talk.extra}


def _parts(talk: Talk) -> dict[str, Any]:
    def turn(message: dict[str, Any]) -> dict[str, Any]:
        return message | {"content": [{"type": "text", "text": message["content"]}]}

    prompt, good, bad = (
        [*map(turn, talk.messages(*turns))] for turns in (talk.prompt, (talk.chosen,), (talk.rejected,))
    )
    return {"prompt": prompt, "chosen": good, "rejected": bad, **talk.extra}


def _whole(talk: Talk, answer: Turn) -> list[dict[str, Any]]:
    return talk.messages(*talk.prompt, answer)


# How a talk becomes a row of each format. The last three are plain text, which takes the words of one question only.
FORMATS: dict[str, Callable[[Talk], dict[str, Any]]] = {
    "messages": lambda t: {
        "prompt": t.messages(*t.prompt), "chosen": t.messages(t.chosen), "rejected": t.messages(t.rejected), **t.extra,
    },
    "whole conversations": lambda t: {"chosen": _whole(t, t.chosen), "rejected": _whole(t, t.rejected), **t.extra},
    "conversations that repeat the prompt": lambda t: {
        "prompt": t.messages(*t.prompt), "chosen": _whole(t, t.chosen), "rejected": _whole(t, t.rejected), **t.extra,
    },
    "conversations that repeat its last turn": lambda t: {
        "prompt": t.messages(*t.prompt), "chosen": t.messages(t.prompt[-1], t.chosen), "rejected": t.messages(t.prompt[-1], t.rejected),
        **t.extra,
    },
    "sharegpt": _sharegpt,
    "parts": _parts,
    "scored": lambda t: {
        "prompt": t.messages(*t.prompt), "responses": [t.messages(t.rejected), t.messages(t.chosen)], "scores": [1, 2], **t.extra,
    },
    "two scores": lambda t: {
        "prompt": t.messages(*t.prompt), "response_a": t.messages(t.chosen), "response_b": t.messages(t.rejected), "score_a": 2,
        "score_b": 1, **t.extra,
    },
    "votes": lambda t: {
        "prompt": t.messages(*t.prompt), "response_a": t.messages(t.rejected), "response_b": t.messages(t.chosen), "votes": ["b"], **t.extra,
    },
    "arena": lambda t: {
        "conversation_a": _whole(t, t.chosen), "conversation_b": _whole(t, t.rejected), "winner": "model_a", **t.extra,
    },
    "unpaired": lambda t: {"prompt": t.messages(*t.prompt), "completion": t.messages(t.chosen), "label": True, **t.extra},
    "pairs": lambda t: {"prompt": t.prompt[0].content, "chosen": t.chosen.content, "rejected": t.rejected.content, **t.extra},
    "instruction": lambda t: {"instruction": t.prompt[0].content, "chosen": t.chosen.content, "rejected": t.rejected.content, **t.extra},
    "dialogue": lambda t: {
        side: f"\n\nHuman: {t.prompt[0].content}\n\nAssistant: {answer.content}"
        for side, answer in (("chosen", t.chosen), ("rejected", t.rejected))
    } | t.extra,
}  # fmt: skip
TEXT_FORMATS = ("pairs", "instruction", "dialogue")


@st.composite
def talks(draw: st.DrawFn, *, text: bool = False) -> Talk:
    """Conversations. text: of one question, as plain text takes it."""
    numbers = itertools.count(10)

    def words() -> str:
        count = draw(st.integers(1, 3))
        joints = draw(st.lists(st.sampled_from(_JOINTS), min_size=count, max_size=count))
        return "".join(f"§{next(numbers)}§{joint}" for joint in joints).rstrip() + f" §{next(numbers)}§"

    def maybe(chance: int = 3) -> bool:
        return draw(st.integers(0, chance)) == 0

    def call() -> dict[str, Any]:
        arguments: Any = {f"§{next(numbers)}§": draw(st.sampled_from([words(), 7, True, [words()], {"a": words()}]))}
        arguments = json.dumps(arguments) if maybe(1) else arguments
        return {
            "type": "function",
            "id": "call00001",
            "function": {"name": f"§{next(numbers)}§", "arguments": arguments},
        }

    def assistant() -> Turn:
        thought = words() if maybe(4) else ""
        reasoning = words() if not text and not thought and maybe(4) else ""
        return Turn("assistant", words(), thought, reasoning, (call(),) if not text and maybe(5) else ())

    prompt: list[Turn] = []
    if not text:
        if maybe():
            prompt.append(Turn(draw(st.sampled_from(["system", "system", "developer", "critic"])), words()))
        for _ in range(draw(st.integers(0, 2))):
            prompt.append(Turn("user", words()))
            prompt.append(turn := assistant())
            if turn.calls:
                prompt += [Turn("tool", words()), assistant()]
    prompt.append(Turn("user", words()))
    has_system = any(turn.role == "system" for turn in prompt)
    system = words() if maybe(5) and not has_system else ""
    parameters = {"type": "object", "properties": {f"§{next(numbers)}§": {"type": "string", "description": words()}}}
    tool = {
        "type": "function",
        "function": {"name": f"§{next(numbers)}§", "description": words(), "parameters": parameters},
    }
    key = draw(st.sampled_from(["reasoning_content", "thinking", "reasoning"]))
    return Talk(tuple(prompt), assistant(), assistant(), system, (tool,) if maybe(5) else (), key)


def refused_or_lost(talk: Talk, layout: str, tokenizer: PairTokenizer, hf: Any) -> tuple[Rejection | None, str]:
    """Why the row is refused, if it is; else what is missing in its tokens, or at another place."""
    row = FORMATS[layout](talk)
    row_format = detect([row], Columns())
    if row_format is None:
        return None, "the format is not found"
    pair = normalize(row, row_format, Columns())
    if isinstance(pair, Rejection):
        return pair, ""
    if (rejection := tokenizer.templated.check(pair)) is not None:
        return rejection, ""
    ((_, found),) = tokenizer.run([(0, pair)])
    if isinstance(found, Rejection):
        return found, ""
    prompt, *answers = (
        hf.decode(ids, clean_up_tokenization_spaces=False) for ids in (found.prompt, found.chosen, found.rejected)
    )
    texts = [(answers[0], talk.chosen), *([(answers[1], talk.rejected)] if layout != "unpaired" else [])]
    for text, answer in texts:
        if (lost := next(_lost(talk, answer, prompt, text), "")) != "":
            return None, lost
    return None, ""


def _lost(talk: Talk, answer: Turn, prompt: str, answered: str) -> Iterator[str]:
    system = (Turn("system", talk.system),) if talk.system else ()
    for where, turns in ((prompt, (*system, *talk.prompt)), (answered, (answer,))):
        end = 0
        for turn in turns:
            begin = end
            for what in (turn.reasoning, turn.thought, turn.text):
                start = where.find(what.strip(), end)
                if start < 0:
                    yield f"{what!r} of {turn.role} after {where[:end]!r} in {where!r}"
                    return
                end = start + len(what.strip())
            if (
                turn.role not in ("system", "user", "assistant", "tool", "developer")
                and turn.role not in where[begin:end].lower()
            ):
                yield f"role {turn.role} in {where!r}"
            called = json.dumps([*turn.calls], ensure_ascii=False)
            yield from (f"{word} of a call in {where!r}" for word in WORD.findall(called) if word not in where)
    offered = json.dumps([*talk.tools], ensure_ascii=False)
    yield from (f"{word} of a tool in {prompt!r}" for word in WORD.findall(offered) if word not in prompt)
    for word in dict.fromkeys(WORD.findall(json.dumps([*_plain(talk.prompt)], ensure_ascii=False))):
        if prompt.count(word) > 1:
            yield f"{word} more than once in {prompt!r}"


def _plain(turns: tuple[Turn, ...]) -> Iterator[str]:
    yield from (turn.content for turn in turns if turn.role == "user")
