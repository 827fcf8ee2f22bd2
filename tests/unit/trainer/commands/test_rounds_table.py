"""The table of a job's rounds, and whose training its report shows."""

from pathlib import Path

import pytest
from rich.console import Console

from dpo_operator.api.reports import RoundReport
from dpo_trainer.commands.rounds_table import chosen_leg, rounds_table
from dpo_trainer.rounds import record
from dpo_trainer.runtime.workdir import WorkDir

pytestmark = pytest.mark.unit


@pytest.fixture
def work(tmp_path: Path) -> WorkDir:
    work = WorkDir(tmp_path)
    first = RoundReport(
        round=1, prompts=100, pairs=90, ended_share=1.0, kl_to_initial=0.0, win_rate_previous=0.75, win_rate_error=0.03,
        win_rate_initial=0.75, win_rate_length_controlled=0.7,
    )  # fmt: skip
    for report in (
        first,
        RoundReport(round=2, prompts=100, pairs=3, ended_share=0.5, kl_to_initial=3.25, ended="Saturated"),
    ):
        record.write_report(work.round(report.round), report)
    return work


def test_a_line_for_each_round(work: WorkDir):
    table = rounds_table(work)
    assert table is not None
    console = Console(width=120, record=True)
    console.print(table)
    lines = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
    assert "1 90 of 100 0.75 ± 0.03 0.75 0.70 3.25 – 1.00" in lines
    assert "2 3 of 100 – – – – – 0.50 Saturated" in lines
    assert rounds_table(WorkDir(work.root / "nothing")) is None


def test_the_report_is_of_the_exported_round(work: WorkDir):
    assert chosen_leg(WorkDir(work.root / "nothing")).leg == ""
    work.round(1).metrics.write_text("")
    assert chosen_leg(work).number == 1
    work.round(2).export.mkdir()
    assert chosen_leg(work).number == 2
    record.choose(work, 1, "RoundsWorse: …")
    assert chosen_leg(work).number == 1
