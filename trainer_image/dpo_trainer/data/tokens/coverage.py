"""Whether what a chat template wrote holds every text of the messages, at its place.

Each text is rendered a second time between marks, which are no characters, and with its number: so a text that is found is the
message's own, not one that looks like it. White space at the ends of a text may go, and tags around thoughts and special tokens are no
text. A template that decides by a message's exact text may write something else around marks; then texts are looked for in their order.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_trainer.data.formats.chats import function_of

# Tags that end a thought in a message's content, as models write them.
_THOUGHT_END = re.compile(
    r"</(?:think|thinking|thought|reasoning|seed:think)>|\[/THINK\]|<\|END_THINKING\|>|<channel\|>"
)
TAGS = r"</?(?:think|thinking|thought|reasoning|seed:think)>|\[/?THINK\]|<\|(?:START|END)_THINKING\|>|<\|channel>|<channel\|>"
# Unicode keeps these for use within a program. Two more are the marks of encoding.py.
_NO_CHARACTERS = [chr(code) for code in range(0xFDD2, 0xFDF0)]


@dataclass(frozen=True)
class Piece:
    """A stretch of a message's text. turn: the message's number. thought: whether it is reasoning."""

    turn: int
    text: str
    thought: bool


@dataclass(frozen=True)
class Place:
    """Where a piece is in the written text."""

    start: int
    end: int


class Marker:
    """Puts marks around the pieces of texts, and numbers them in the order of the calls.

    tags: what stands between pieces. texts: all that will be marked.
    Raises ValueError when no marks are left, because the texts hold them.
    """

    def __init__(self, tags: re.Pattern[str], texts: Sequence[str]) -> None:
        free = [char for char in _NO_CHARACTERS if not any(char in text for text in texts)]
        if len(free) < 3:
            raise ValueError("a message holds characters from U+FDD2 to U+FDEF, which are no characters")
        self._tags = tags
        self._open, self._number, self._close = free[:3]
        self._mark = re.compile(f"{self._open}(\\d+){self._number}|{self._close}")
        self.pieces: list[Piece] = []

    def mark(self, text: str, turn: int, *, thought: bool, thinks: bool) -> str:
        """The text with marks around its pieces.

        thought: whether it is reasoning as a whole. thinks: whether it is reasoning up to a tag that ends it, as in assistants' turns.
        """
        ends = [found.start() for found in _THOUGHT_END.finditer(text)] if thinks else []
        written, last = [], 0
        for start, end in _stretches(text, self._tags):
            written.append(
                f"{text[last:start]}{self._open}{len(self.pieces)}{self._number}{text[start:end]}{self._close}"
            )
            self.pieces.append(Piece(turn, text[start:end], thought or bool(ends and start < ends[-1])))
            last = end
        return "".join([*written, text[last:]])

    def places(self, marked: str, plain: str) -> list[Place | None]:
        """Place of each piece in the plain text; None when the piece is not there, or not behind the one before it.

        marked: what the template wrote of marked texts. plain: what it wrote of the same texts without marks.
        """
        if self._mark.sub("", marked) != plain:
            return _in_order(self.pieces, plain)
        found: dict[int, Place] = {}
        opened: tuple[int, int] | None = None
        taken = 0
        for mark in self._mark.finditer(marked):
            at = mark.start() - taken
            taken += len(mark[0])
            if mark[1] is not None:
                opened = (int(mark[1]), at)
            elif opened is not None:
                number, start = opened
                opened = None
                if number < len(self.pieces) and plain[start:at] == self.pieces[number].text:
                    found.setdefault(number, Place(start, at))
        return _rising([found.get(number) for number in range(len(self.pieces))])


def _stretches(text: str, tags: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Start and end of what stands between tags, without white space at its ends."""
    start = 0
    for end, after in [*((tag.start(), tag.end()) for tag in tags.finditer(text)), (len(text), len(text))]:
        inner = text[start:end]
        if core := inner.strip():
            begin = start + inner.index(core[0])
            yield begin, begin + len(core)
        start = after


def _in_order(pieces: Sequence[Piece], plain: str) -> list[Place | None]:
    """The first place of each piece behind the one before it."""
    places: list[Place | None] = []
    end = 0
    for piece in pieces:
        start = plain.find(piece.text, end)
        places.append(None if start < 0 else Place(start, start + len(piece.text)))
        end = end if start < 0 else start + len(piece.text)
    return places


def _rising(places: list[Place | None]) -> list[Place | None]:
    """The places without those that are before an earlier piece's."""
    end = 0
    kept: list[Place | None] = []
    for place in places:
        kept.append(place if place is not None and place.start >= end else None)
        end = end if kept[-1] is None else kept[-1].end
    return kept


def region(pieces: Sequence[Piece], places: Sequence[Place | None], turn: int, plain: str) -> str:
    """What is written between the texts of the turns before and after a turn."""
    turns = [piece.turn for piece in pieces]
    before = [place.end for place in places[: bisect_left(turns, turn)] if place is not None]
    after = [place.start for place in places[bisect_left(turns, turn + 1) :] if place is not None]
    return plain[max(before, default=0) : min(after, default=len(plain))]


def lost_of_call(call: Mapping[str, Any], written: str) -> str | None:
    """Name, argument or value of a tool call that a text lacks; None when all are there."""
    function = function_of(call)
    arguments = function.get("arguments")
    leaves: list[tuple[str, Any]] = [("name", function["name"])]
    if isinstance(arguments, str):
        leaves.append(("arguments", arguments))
    else:
        leaves += [leaf for inner in _leaves(arguments) for leaf in inner]
    return next((what for what, value in leaves if not _is_written(value, written)), None)


def lost_of_tool(tool: Mapping[str, Any], written: str) -> str | None:
    """Name or description of a tool, or of one of its parameters, that a text lacks; None when all are there."""
    return next((what for what, value in _told(tool) if not _is_written(value, written)), None)


def _leaves(value: Any) -> Iterator[list[tuple[str, Any]]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield [(f"argument {str(key)[:64]}", key)]
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None:
        yield [("a value of arguments", value)]


def _told(value: Any) -> Iterator[tuple[str, Any]]:
    """Names, descriptions and names of parameters in a tool's schema."""
    if isinstance(value, list):
        for inner in value:
            yield from _told(inner)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key in ("name", "description") and isinstance(inner, str):
                yield key, inner
            elif key == "properties" and isinstance(inner, Mapping):
                for parameter, schema in inner.items():
                    yield f"parameter {str(parameter)[:64]}", parameter
                    yield from _told(schema)
            else:
                yield from _told(inner)


def _is_written(value: Any, text: str) -> bool:
    """Whether a text holds a value in one of the ways in which templates write them: as it is, as JSON, or as Python does."""
    if not isinstance(value, str):
        return any(form in text for form in (json.dumps(value), str(value), repr(value)))
    bare = value.strip()
    quoted = bare.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    forms = (bare, json.dumps(bare, ensure_ascii=False)[1:-1], json.dumps(bare)[1:-1], quoted)
    return any(form in text for form in forms)
