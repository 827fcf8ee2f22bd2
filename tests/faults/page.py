"""The page docs/faults.md, from the results of a run."""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.faults.matrix import INVARIANTS, ROWS


@dataclass(frozen=True)
class Result:
    """How a test ended, and how long it took with its set-up, seconds."""

    passed: bool
    seconds: float


def function(node: str) -> str:
    """A test without its parameters, which may be dozens."""
    return node.partition("[")[0]


def merged(known: Result | None, new: Result) -> Result:
    """Both as one."""
    return new if known is None else Result(known.passed and new.passed, known.seconds + new.seconds)


def verdict(tests: Mapping[str, Result]) -> str:
    """One word for a row."""
    if not tests:
        return "no test"
    return "held" if all(result.passed for result in tests.values()) else "BROKEN"


def render(found: Mapping[int, Mapping[str, Result]]) -> str:
    """The page."""
    lines = [
        "# Faults",
        "",
        "What is broken on purpose before a release, by `make faults`, and what came of it. Each test injects its fault for real: "
        "into an operator and a real API server, or into a cluster of real kubelets with the real images.",
        "",
        "After each fault these are checked, as far as the fault concerns them:",
        "",
        *(f"- **{letter}**: {text}" for letter, text in INVARIANTS.items()),
        "",
        "| # | Fault | Must be true | Tests | Result |",
        "|---|---|---|---|---|",
    ]
    for number, row in ROWS.items():
        tests = found.get(number, {})
        names = "<br>".join(f"`{name}`" for name in sorted(tests))
        lines.append(f"| {number} | {row.fault} | {row.expected} | {names} | {verdict(tests)} |")
    return "\n".join([*lines, ""])
