"""Render chats with the template, split the prompt from the answer, and see that nothing of the messages is lost."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from dpo_operator.api.data import Template
from dpo_trainer.data.formats.pairs import ChatPair, Message, Reason
from dpo_trainer.data.tokens.coverage import TAGS, Marker, Piece, Place, lost_of_call, lost_of_tool, region
from dpo_trainer.data.tokens.dialect import Dialect
from dpo_trainer.data.tokens.encoding import END, START, Encoder
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration

# Characters that a template may add to 4 times those of the messages.
LONGEST_TEXT = 1_000_000
# Roles that templates write in words of their own. The name of any other role must be in the text.
_KNOWN_ROLES = ("system", "user", "assistant", "tool", "developer")

_OTHER_TEMPLATE = "set model.chatTemplate to one that writes the earlier messages alike, whatever follows them"

Messages = list[dict[str, Any]]
# Changes a text of a message before it is rendered: its text, the message's number, whether it is reasoning.
Change = Callable[[str, int, bool], str]


class TemplateRefused(Exception):
    """The template can't render a chat as it is, or prompt and answer can't be split. The message says why."""

    def __init__(self, detail: str, reason: Reason = Reason.TEMPLATE_ERROR) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Chat:
    """prompt: text up to the answers. whole: prompt and answer, for each answer.

    looks_special: whether messages hold the text of special tokens; there are marks around it then.
    lost_reasoning: whether the template left reasoning out, as data.template.keepReasoning allows.
    """

    prompt: str
    whole: list[str]
    looks_special: bool
    lost_reasoning: bool = False


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any, encoder: Encoder, settings: Template) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._keep = settings.keep_reasoning
        self._dialect = Dialect(self._write, TemplateRefused)
        added = sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        names = [re.escape(token) for token in added if token.strip()]
        # Whether finished chats begin with the generation prompt: asked once, so that the same prompt has the same end in all pairs.
        self._goes_on: bool | None = None
        self._added = re.compile("|".join(names) or "(?!)")
        self._tags = re.compile("|".join([*names, TAGS]))
        # Tokens that models write in their answers.
        self._own = frozenset(token for token in added if re.fullmatch(f"{TAGS}|</?tool_call>", token))

    def render(self, pair: ChatPair) -> Chat:
        """A pair as text.

        Raises TemplateRefused, and TrainerError INVALID_CONFIGURATION when there is no template or it is not valid Jinja.
        """
        if not self._tokenizer.chat_template:
            raise no_template()
        texts = _texts(pair)
        found = frozenset(token for text in texts for token in self._encoder.special_in(text))
        if found and any(mark in text for text in texts for mark in (START, END)):
            raise TemplateRefused(
                "a message holds the text of a special token, and U+FDD0 or U+FDD1, which are no characters"
            )
        plain = self._written(pair, _as_it_is)
        change = self._mark_all_but(self._read_by_template(pair, plain, found), pair) if found else _as_it_is
        marked = self._written(pair, change) if found else plain
        if found and [*map(_without_marks, marked)] != plain:
            raise TemplateRefused(
                "the chat template changes the text of special tokens in a message; set model.chatTemplate to one that does not"
            )
        prompt = self._prompt_of(pair, marked, change)
        border = len(_without_marks(prompt)) if found else len(prompt)
        lost = [self._check(pair, answer, text, border) for answer, text in zip(pair.answers, plain, strict=True)]
        return Chat(prompt, marked, bool(found), any(lost))

    def _written(self, pair: ChatPair, change: Change) -> list[str]:
        """Prompt and answer, for each answer."""
        prompt, tools = self._prompt(pair, change)
        return [
            self._write([*prompt, self._message(answer, len(prompt), change)], tools=tools) for answer in pair.answers
        ]

    def _prompt(self, pair: ChatPair, change: Change) -> tuple[Messages, Any]:
        tools = _deep([*pair.tools], change) or None
        return [self._message(turn, number, change) for number, turn in enumerate(pair.prompt)], tools

    def _message(self, turn: Message, number: int, change: Change) -> dict[str, Any]:
        message: dict[str, Any] = {"role": change(turn.role, -1, False)}
        if turn.reasoning:
            message[self._dialect.reasoning_key] = change(turn.reasoning, number, True)
        content = change(turn.content, number, False) if turn.content or not turn.tool_calls else None
        message["content"] = self._dialect.content(self._dialect.no_content if content is None else content)
        if turn.tool_calls:
            message["tool_calls"] = _deep([self._dialect.call(call) for call in turn.tool_calls], change)
        return message | {key: change(value, -1, False) for key, value in turn.others}

    def _read_by_template(self, pair: ChatPair, plain: list[str], found: frozenset[str]) -> frozenset[str]:
        """Special tokens in the messages that the template itself reads, such as </think>.

        It makes something else of them when there are marks around them; they mean what they mean to it.
        """

        def changed(tokens: frozenset[str]) -> bool:
            marked = self._written(pair, self._mark_all_but(found - tokens, pair))
            return [*map(_without_marks, marked)] != plain

        if not changed(found):
            return frozenset()
        return frozenset(token for token in found if changed(frozenset([token])))

    def _mark_all_but(self, tokens: frozenset[str], pair: ChatPair) -> Change:
        """Put marks around special tokens but the given ones, and tags of thoughts and calls in what the assistant says."""
        said = {number for number, turn in enumerate((*pair.prompt, *pair.answers[:1])) if turn.role == "assistant"}
        return lambda text, turn, _: self._encoder.mark(text, tokens | self._own if turn in said else tokens)

    def _prompt_of(self, pair: ChatPair, whole: list[str], change: Change) -> str:
        """The text up to the answers."""
        prompt, tools = self._prompt(pair, change)
        opened = self._write(prompt, open_end=True, tools=tools)
        if self._goes_on is None:
            self._goes_on = self._write(_answered(prompt, self._dialect.content("0")), tools=tools).startswith(opened)
        if self._goes_on and all(text.startswith(opened) for text in whole):
            return opened
        return self._shared(prompt, tools, [opened, *whole])

    def _shared(self, prompt: Messages, tools: Any, texts: list[str]) -> str:
        """The prompt when the generation prompt does not begin all chats: the beginning that all share.

        Templates that open a block of thoughts for generation leave it out of finished turns.
        """
        # Render with two other answers, so that a common beginning of both answers is not taken for the prompt.
        others = [self._dialect.content(text) for text in ("0", "1")]
        probes = [self._write(_answered(prompt, text), tools=tools) for text in others]
        shared = _common_beginning([*texts, *probes])
        if not shared.startswith(self._write(prompt, tools=tools)):
            raise TemplateRefused(
                f"the chat template writes the prompt in another way when an answer follows; {_OTHER_TEMPLATE}"
            )
        # Never within a special token.
        ends = [
            found.start() for text in texts for found in self._added.finditer(text)
            if found.start() < len(shared) < found.end()
        ]  # fmt: skip
        return shared[: min(ends, default=len(shared))]

    def _check(self, pair: ChatPair, answer: Message, plain: str, border: int) -> bool:
        """Refuse a chat of which the template leaves something out; whether it left out reasoning that it may.

        plain: what the template wrote. border: length of its prompt.
        """
        turns = [*pair.prompt, answer]
        try:
            marker = Marker(self._tags, _texts(pair))
        except ValueError as error:
            raise TemplateRefused(str(error)) from error

        def mark(text: str, turn: int, thought: bool) -> str:
            thinks = turn >= 0 and turns[turn].role == "assistant"
            return text if turn < 0 else marker.mark(text, turn, thought=thought, thinks=thinks)

        (marked,) = self._written(ChatPair(pair.prompt, answer, None, tools=pair.tools), mark)
        pieces, places = marker.pieces, marker.places(marked, plain)
        lost = [piece for piece, place in zip(pieces, places, strict=True) if place is None]
        for piece in lost:
            if not piece.thought or not self._may_lose(piece, turns):
                raise _left_out(piece, turns, whole=all(p in lost for p in pieces if p.turn == piece.turn))
        for piece, place in zip(pieces, places, strict=True):
            if place is not None and (place.start < border if piece.turn == len(pair.prompt) else place.end > border):
                raise TemplateRefused(
                    f"the chat template writes an answer's beginning before the prompt's end; {_OTHER_TEMPLATE}"
                )
        self._check_roles(turns, pieces, places, plain)
        self._check_calls(turns, pieces, places, plain)
        for tool in pair.tools:
            if (what := lost_of_tool(tool, plain)) is not None:
                raise _ignored(f"tools (a tool's {what})", "or ignoreColumns to leave the column of tools out")
        return bool(lost)

    def _may_lose(self, piece: Piece, turns: Sequence[Message]) -> bool:
        return self._keep == "none" or (self._keep == "answers" and piece.turn < len(turns) - 1)

    @staticmethod
    def _check_roles(
        turns: Sequence[Message], pieces: Sequence[Piece], places: Sequence[Place | None], plain: str
    ) -> None:
        end, seen = 0, -1
        for piece, place in zip(pieces, places, strict=True):
            if place is None:
                continue
            role = turns[piece.turn].role
            if piece.turn > seen and not _names(plain[end : place.start], role):
                raise TemplateRefused(
                    f"the chat template does not write the role {role[:64]}, and so takes the turn for another's; rename the role",
                    Reason.LEFT_OUT_BY_TEMPLATE,
                )
            end, seen = place.end, piece.turn

    def _check_calls(
        self, turns: Sequence[Message], pieces: Sequence[Piece], places: Sequence[Place | None], plain: str
    ) -> None:
        for number, turn in enumerate(turns):
            if not turn.tool_calls:
                continue
            written = region(pieces, places, number, plain)
            for call in turn.tool_calls:
                if (what := lost_of_call(self._dialect.call(call), written)) is not None:
                    raise _ignored(
                        f"tool_calls of an assistant's turn ({what})", "or leave such rows out with filters.where"
                    )

    def _write(self, chat: Messages, *, open_end: bool = False, tools: Any = None) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                chat, tools=tools, tokenize=False, add_generation_prompt=open_end
            )
        except jinja2.TemplateSyntaxError as error:
            raise invalid_configuration(
                f"the chat template is not valid Jinja: {error.message} (line {error.lineno})"
            ) from error
        except MemoryError:
            raise
        except Exception as error:  # a template can raise whatever its expressions do
            way = "change the messages"
            if any(message["role"] == "system" for message in chat):
                way = "write the system message into the first user's"
            raise TemplateRefused(
                f"the chat template refused messages of roles {_roles(chat)}: {str(error)[:200]}; set model.chatTemplate to one that takes "
                f"them, or {way}"
            ) from error
        given = sum(map(len, _texts_of([chat, tools])))
        if len(text) > LONGEST_TEXT + 4 * given:
            raise TemplateRefused(f"the chat template writes {len(text)} characters for messages of {given}")
        return str(text)


def no_template() -> TrainerError:
    """Messages can't become text without a template."""
    return invalid_configuration(
        "the data are chat messages, but the tokenizer has no chat template; set model.chatTemplate to the one that the model "
        "was fine-tuned with"
    )


def _names(text: str, role: str) -> bool:
    """Whether a text in front of a turn names its role, or the role is one for which templates have words of their own."""
    return role in _KNOWN_ROLES or role.strip().lower() in text.lower()


def _left_out(piece: Piece, turns: Sequence[Message], *, whole: bool) -> TemplateRefused:
    """What to say of a piece that the template does not write. whole: whether nothing of its turn is written."""
    role, last = turns[piece.turn].role[:64], piece.turn == len(turns) - 1
    where = "the answer" if last else f"message {piece.turn + 1} (role {role})"
    if piece.thought:
        setting = "none" if last else "answers"
        detail = (
            f"the chat template leaves out reasoning of {where}; set model.chatTemplate to one that writes it, or "
            f"data.template.keepReasoning to {setting} to train without it"
        )
    elif whole and role not in ("user", "assistant"):
        detail = (
            f"the chat template leaves out {where}; rename the role, or set model.chatTemplate to one that writes it"
        )
    else:
        detail = f"the chat template leaves out, changes or moves text of {where}; set model.chatTemplate to one that writes it"
    return TemplateRefused(detail, Reason.LEFT_OUT_BY_TEMPLATE)


def _ignored(what: str, otherwise: str) -> TemplateRefused:
    return TemplateRefused(
        f"the chat template leaves out {what}; set model.chatTemplate to one that writes them, {otherwise}",
        Reason.LEFT_OUT_BY_TEMPLATE,
    )


def _as_it_is(text: str, _turn: int, _thought: bool) -> str:
    return text


def _without_marks(text: str) -> str:
    return text.replace(START, "").replace(END, "")


def _deep(value: Any, change: Change) -> Any:
    """A value with all its texts changed, those of keys too."""
    if isinstance(value, str):
        return change(value, -1, False)
    if isinstance(value, Mapping):
        return {_deep(key, change): _deep(inner, change) for key, inner in value.items()}
    return [_deep(inner, change) for inner in value] if isinstance(value, list) else value


def _texts_of(value: Any) -> Iterator[str]:
    """All texts in a value, without those of keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts_of([*value.values()])
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts_of(inner)


def _texts(pair: ChatPair) -> list[str]:
    """All texts of a pair, those of tools and calls too."""
    turns = (*pair.prompt, *pair.answers)
    return [
        text
        for turn in turns
        for text in _texts_of([turn.role, turn.content, turn.reasoning, turn.tool_calls, turn.others])
    ] + [*_texts_of(pair.tools)]


def _roles(chat: Messages) -> str:
    roles = [str(message["role"])[:64] for message in chat]
    return ", ".join(roles if len(roles) <= 8 else [*roles[:7], "…"])


def _answered(prompt: Messages, answer: Any) -> Messages:
    return [*prompt, {"role": "assistant", "content": answer}]


def _common_beginning(texts: list[str]) -> str:
    # The common beginning of the smallest and the largest text is common to all.
    one, other = min(texts), max(texts)
    return one[
        : next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    ]
