"""Situations of jobs, for the golden texts of `why`; `python -m tests.unit.explain.situations` writes them again."""

import sys
from pathlib import Path

from dpo_operator.explain.why import why
from tests.unit.explain.failing import FAILING
from tests.unit.explain.running import RUNNING
from tests.unit.explain.waiting import WAITING

GOLDEN = Path(__file__).with_name("golden.txt")
SITUATIONS = WAITING | FAILING | RUNNING


def written() -> str:
    """The golden file."""
    return "\n".join(f"=== {name}\n{why(make()).text()}" for name, make in SITUATIONS.items())


if __name__ == "__main__":
    GOLDEN.write_text(written())
    sys.stdout.write(f"{len(SITUATIONS)} situations\n")
