"""The table and the picture of a sweep, and whose training its report shows."""

from pathlib import Path

import pytest
from rich.console import Console

from dpo_operator.api.sweep.grid import Sweep
from dpo_operator.api.sweep.report import LegReport
from dpo_trainer.commands.legs_table import legs_table
from dpo_trainer.commands.page.content import leg_charts
from dpo_trainer.commands.page.html import page
from dpo_trainer.commands.rounds_table import chosen_leg
from dpo_trainer.commands.run_log import Run
from dpo_trainer.legs import record
from dpo_trainer.runtime.workdir import WorkDir

pytestmark = pytest.mark.unit


@pytest.fixture
def work(tmp_path: Path) -> WorkDir:
    work = WorkDir(tmp_path)
    for report in (
        LegReport(
            leg=1,
            settings="beta 0.1",
            outcome="Trained",
            steps=8,
            accuracy=0.75,
            loss=0.5,
            margin=0.25,
            drift=0.5,
            kl=2.0,
        ),
        LegReport(
            leg=2, settings="beta 0.3", outcome="Trained", steps=8, accuracy=0.875, loss=0.25, margin=0.75, drift=0.125
        ),
        LegReport(
            leg=3,
            settings="beta 1",
            outcome="Unhealthy",
            steps=2,
            findings=("Gibberish",),
            unhealthy=True,
            drift=2.0,
            accuracy=0.5,
        ),
    ):
        leg = work.of_sweep(report.leg)
        record.write_report(leg, report)
        leg.metrics.write_text("{}\n")
    return work


def lines(work: WorkDir) -> list[str]:
    table = legs_table(work)
    assert table is not None
    console = Console(width=140, record=True)
    console.print(table)
    return [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]


def test_a_line_for_each_leg(work: WorkDir):
    assert "2 beta 0.3 8 87.5% 0.25 0.75 0.125 – Trained" in lines(work)
    record.write_choice(Sweep(beta=[0.1, 0.3, 1.0]), work.of_sweep(2))
    found = lines(work)
    assert "1 beta 0.1 8 75.0% 0.5 0.25 0.5 2 Trained" in found
    assert "2 beta 0.3 8 87.5% 0.25 0.75 0.125 – exported" in found
    assert "3 beta 1 2 50.0% – – 2 – Unhealthy (Gibberish)" in found
    assert legs_table(WorkDir(work.root / "nothing")) is None


def test_the_report_shows_the_exported_leg_else_the_newest(work: WorkDir):
    assert chosen_leg(work).sweep_number == 3
    record.write_choice(Sweep(beta=[0.1, 0.3, 1.0]), work.of_sweep(2))
    assert chosen_leg(work).sweep_number == 2


def test_the_picture_has_a_point_for_each_leg_over_its_drift(work: WorkDir):
    record.write_choice(Sweep(beta=[0.1, 0.3, 1.0]), work.of_sweep(2))
    accuracy, margin = leg_charts(work)
    assert [(each.label, len(each.dots), each.line) for each in accuracy.series] == [
        ("exported", 1, ""), ("trained", 1, ""), ("unhealthy", 1, "")
    ]  # fmt: skip
    assert (accuracy.x_ticks[0][1], accuracy.x_ticks[-1][1]) == ("0.125", "2")
    # The least drift is on the left.
    places = {each.label: each.dots[0][0] for each in accuracy.series}
    assert places["exported"] < places["trained"] < places["unhealthy"]
    assert [each.label for each in margin.series] == ["exported", "trained"]
    html = page(Run([], []), work.of_sweep(2), None, [], [], "")
    assert "<h2>Sweep</h2>" in html
    assert "Unhealthy (Gibberish)" in html
