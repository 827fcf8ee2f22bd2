"""Inject every fault of the matrix for real, and print what came of it: `make faults`.

`python -m tests.faults 17 34` runs the tests of some rows. docs/faults.md gets the results and the day; with --write nothing is
run, and the page only gets the tests as they are now.
"""

import argparse
import sys
import time
from collections import defaultdict
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.faults import page
from tests.faults.matrix import ROWS

PAGE = Path("docs/faults.md")


@dataclass(eq=False)  # pytest wants to hash its plugins
class Recorder:
    """A pytest plugin: which rows each test injects, and how it ended.

    wanted: rows whose tests are run; empty means all.
    """

    wanted: frozenset[int]
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    results: dict[str, page.Result] = field(default_factory=dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item], config: pytest.Config) -> None:
        kept, left = [], []
        for item in items:
            rows = tuple(int(row) for marker in item.iter_markers("fault") for row in marker.args)
            fits = bool(rows) and (not self.wanted or bool(self.wanted & set(rows)))
            (kept if fits else left).append(item)
            if fits:
                self.rows[item.nodeid] = rows
        items[:] = kept
        config.hook.pytest_deselected(items=left)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        known = self.results.get(report.nodeid, page.Result(True, 0.0))
        passed = known.passed and report.outcome == "passed"
        self.results[report.nodeid] = page.Result(passed, known.seconds + report.duration)

    def by_row(self) -> dict[int, dict[str, page.Result]]:
        """Tests of each row, and how they ended; a test that did not run failed."""
        found: dict[int, dict[str, page.Result]] = defaultdict(dict)
        for test, rows in self.rows.items():
            for row in rows:
                found[row][page.function(test)] = page.merged(
                    found[row].get(page.function(test)), self.results.get(test, page.Result(False, 0.0))
                )
        return found


def write(results: dict[int, str]) -> None:
    """docs/faults.md with the tests of all rows, and with what it said before of rows that have no new result."""
    everything = Recorder(frozenset())
    with redirect_stdout(StringIO()) as said:
        code = pytest.main(["-q", "-m", "fault", "--collect-only"], plugins=[everything])
    if code != pytest.ExitCode.OK:
        raise SystemExit(f"the tests could not be collected:\n{said.getvalue()}")
    tests = everything.by_row()
    before = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    text = page.render(tests, page.last_results(before) | results)
    PAGE.write_text(page.with_campaign(text, page.campaign_of(before)), encoding="utf-8")


def main() -> int:
    """Exit status 0 when every test passed and every row that was asked for has one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, help="rows of the matrix; default: all")
    parser.add_argument("--write", action="store_true", help="only write docs/faults.md")
    parser.add_argument("--pytest", default="", help="more arguments for pytest")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"expected rows from {min(ROWS)} to {max(ROWS)}, found {sorted(unknown)}")
    recorder = Recorder(frozenset(arguments.rows))
    begun = time.monotonic()
    if arguments.write:
        write({})
        return 0
    code = pytest.main(["-q", "-rf", "-m", "fault", *arguments.pytest.split()], plugins=[recorder])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return int(code)  # nothing is known of any row
    found = recorder.by_row()
    table = Table("#", "fault", "must be true", "tests", "result", "s")
    for number in sorted(recorder.wanted or ROWS):
        tests, row = found.get(number, {}), ROWS[number]
        names = "\n".join(name.rpartition("::")[2] for name in tests) or "none"
        seconds = f"{sum(result.seconds for result in tests.values()):.0f}"
        table.add_row(str(number), row.fault, row.expected, names, page.verdict(tests), seconds)
    Console(width=None if sys.stdout.isatty() else 180).print(table)
    today = datetime.now(UTC).date()
    verdicts = {number: f"{page.verdict(found.get(number, {}))}, {today}" for number in recorder.wanted or ROWS}
    write(verdicts)
    held = sum(page.verdict(found.get(number, {})) == "held" for number in recorder.wanted or ROWS)
    print(
        f"{held} of {len(recorder.wanted or ROWS)} rows held, {len(recorder.results)} tests, {time.monotonic() - begun:.0f} s"
    )
    return int(code) or int(held < len(recorder.wanted or ROWS))


if __name__ == "__main__":
    sys.exit(main())
