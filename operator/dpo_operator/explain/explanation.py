"""The answer to why a job is where it is."""

from dataclasses import dataclass
from typing import Literal

from dpo_operator.api.text import shown
from dpo_operator.explain.case import Case

Kind = Literal[
    "unseen",
    "pending",
    "restarting",
    "suspended",
    "stopped",
    "working",
    "slow",
    "silent",
    "ill",
    "failed",
    "finished",
    "other",
]
MAX_LINE = 1200


@dataclass(frozen=True)
class Explanation:
    """The answer. kind: for programs. headline: the state and its cause in one sentence. The rest: lines for people."""

    kind: Kind
    headline: str
    cause: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    do: tuple[str, ...] = ()

    def text(self) -> str:
        """For a terminal; every line is one line."""
        parts = [shown(self.headline, MAX_LINE)]
        for title, lines in (
            ("Cause", self.cause),
            ("What was tried", self.tried),
            ("What happens next", self.next),
            ("What you can do", self.do),
        ):
            if lines:
                parts += ["", title, *(f"  {shown(line, MAX_LINE)}" for line in lines)]
        return "\n".join(parts) + "\n"


def who(case: Case) -> str:
    """The job, at the beginning of a sentence."""
    return f"The run in {case.place.folder}" if case.local else f"{case.name} (namespace {case.namespace})"
