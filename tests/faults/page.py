"""The page docs/faults.md, and the verdict on a row."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.faults.matrix import INVARIANTS, ROWS

NOT_RUN = "not run as a whole yet"
CAMPAIGN = "## Faults at every request"
CAMPAIGN_TEXT = (
    "`make campaign` injects these into the requests of a DPOJob's life (prepare, training of a gang with a restart, export, deletion), at random "
    "requests, alone and up to four together, with one operator and with a leader and a standby, and compares each life with a calm one "
    "([how](development/campaign.md)). Its last run:"
)


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


def last_results(text: str) -> dict[int, str]:
    """What the page says of the last run of each row."""
    rows = re.finditer(r"^\| (\d+) \|.*\| ([a-zA-Z ]+, [0-9-]+) \|$", text, flags=re.MULTILINE)
    return {int(row[1]): row[2] for row in rows}


def campaign_of(text: str) -> str:
    """What the page says of the last campaign."""
    return text.partition(CAMPAIGN_TEXT)[2].strip()


def with_campaign(text: str, table: str) -> str:
    """The page with another table of the campaign."""
    return f"{text.partition(CAMPAIGN)[0].rstrip()}\n\n{CAMPAIGN}\n\n{CAMPAIGN_TEXT}\n\n{table}\n"


def render(tests: Mapping[int, Iterable[str]], results: Mapping[int, str]) -> str:
    """The page. tests: of each row. results: of the last run of each row, with its day."""
    lines = [
        "# Faults",
        "",
        "What is broken on purpose, the tests that do it, and what came of it last: `make faults` runs them all, prints this table and writes "
        'it here, `make faults FAULTS="17 34"` some rows. Each test injects its fault for real: into an operator and a real API server, or into a '
        "cluster of real kubelets with the real images. Those in `tests/cluster/campaign` are too long for each run of `make test`.",
        "",
        "After each fault these are checked, as far as the fault concerns them:",
        "",
        *(f"- **{letter}**: {text}" for letter, text in INVARIANTS.items()),
        "",
        "| # | Fault | Must be true | Tests | Result |",
        "|---|---|---|---|---|",
    ]
    for number, row in ROWS.items():
        names = "<br>".join(f"`{name}`" for name in sorted(tests.get(number, ())))
        lines.append(
            f"| {number} | {row.fault} | {row.expected} | {names or 'none'} | {results.get(number, NOT_RUN)} |"
        )
    return "\n".join([*lines, ""])
