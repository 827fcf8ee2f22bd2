"""Words of strangers: pods, Events, webhooks and other clients say what they like, and people read it in a terminal."""

import re
from typing import Annotated

from pydantic import AfterValidator, ValidationError

# Longest text that is taken from a stranger, characters.
MAX_SHOWN = 2048
# Of a value that is wrong, and of the path of its field.
MAX_FOUND = 80
MAX_PATH = 300
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Unicode counts these as printable, and no font shows them: fillers, blanks, selectors and joiners (Default_Ignorable_Code_Point).
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
# Line breaks and tabs become spaces, so that a text can't start a line of its own.
_BLANKS = re.compile(r"[\s\x1c-\x1f\x85]+")
# Marks that are stacked on one character reach into the lines above and below.
_STACKED = re.compile(
    "([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{3})[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)
_QUOTES = re.compile("[\u201c-\u201f]")
# The end of a message holds the consequence.
MAX_END = 240


def _shorten(message: str, limit: int) -> str:
    """A message of at most `limit` characters. The middle is cut: the end holds the consequence."""
    if len(message) <= limit:
        return message
    end = min(MAX_END, limit // 3)
    return f"{message[: limit - end - 5].rstrip()} […] {message[-end:].lstrip()}"


def shown(text: str, limit: int = MAX_SHOWN) -> str:
    """A stranger's text as one line of at most `limit` visible characters.

    Control characters, terminal sequences, directions of writing, invisible characters and halves of surrogate pairs become
    replacement characters. What was shown once stays as it is.
    """
    # Cut first: the work is bounded, too.
    text = _BLANKS.sub(" ", _shorten(text, 4 * limit)).strip()
    if not text.isprintable() or _INVISIBLE.search(text):
        text = "".join(c if c.isprintable() else REPLACEMENT for c in _INVISIBLE.sub(REPLACEMENT, text))
    return _shorten(_STACKED.sub(r"\1", text), limit).strip()


def quoted(text: str, limit: int = MAX_SHOWN) -> str:
    """A stranger's text in quotation marks that it can't close itself."""
    inner = _QUOTES.sub('"', shown(text, limit - 2))
    return f"“{inner}”"


# Text of a stranger in a message between programs.
Words = Annotated[str, AfterValidator(shown)]


def sentences(error: ValidationError) -> list[str]:
    """One sentence for each problem: the field's path, what was expected, and what was found where that helps."""
    lines = []
    for problem in error.errors():
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
        found = problem["input"]
        hidden = problem["type"] == "missing" or isinstance(found, dict)
        lines.append(
            f"{shown(path, MAX_PATH)}: {shown(problem['msg'])}"
            + ("" if hidden else f" (found {_shortened(repr(found))})")
        )
    return lines


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_FOUND else f"{text[: MAX_FOUND - 1]}…"
