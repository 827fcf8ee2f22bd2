"""The legs of a sweep as a table: what came of each, and which one is exported."""

from rich.table import Table

from dpo_operator.api.sweep.report import LegReport
from dpo_trainer.legs import record
from dpo_trainer.runtime.workdir import WorkDir

TITLES = ("leg", "settings", "steps", "accuracy", "loss", "margin", "drift", "KL", "outcome")


def outcome(leg: LegReport, chosen: int | None) -> str:
    """How a leg ended, in words: its findings, and whether it is exported."""
    ended = leg.outcome if leg.outcome == "Unhealthy" or leg.leg != chosen else "exported"
    return f"{ended} ({', '.join(leg.findings)})" if leg.findings else ended


def legs_rows(work: WorkDir) -> list[list[str]]:
    """A line of texts for each leg that has ended, as TITLES names them."""
    chosen = record.chosen(work)
    return [
        [
            str(leg.leg),
            leg.settings,
            str(leg.steps),
            "–" if leg.accuracy is None else f"{leg.accuracy:.1%}",
            *(_number(value) for value in (leg.loss, leg.margin, leg.drift, leg.kl)),
            outcome(leg, chosen),
        ]
        for leg in record.read_reports(work)
    ]


def legs_table(work: WorkDir) -> Table | None:
    """The same for a terminal; None without any leg."""
    rows = legs_rows(work)
    if not rows:
        return None
    table = Table(title="Sweep", title_justify="left", title_style="bold")
    for title in TITLES:
        table.add_column(title, justify="left" if title in ("settings", "outcome") else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
