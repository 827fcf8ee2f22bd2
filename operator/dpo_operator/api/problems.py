"""Problems of a job as sentences that name the field."""

from pydantic import ValidationError

from dpo_operator.api.text import shown

MAX_FOUND = 80
MAX_PATH = 300


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
