"""The rounds of a job as a table: what came of each, and what the policy that it trained is worth."""

from dataclasses import dataclass

from rich.table import Table

from dpo_operator.api.reports import RoundReport
from dpo_trainer.legs import record as leg_record
from dpo_trainer.rounds import record
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir

TITLES = ("round", "pairs", "win rate", "against initial", "at equal length", "KL", "own NLL", "ended", "end")


def chosen_leg(work: WorkDir) -> WorkDir:
    """The round or leg whose training a report shows: the exported one, else the newest; the job itself without any."""
    if work.legs and not work.sweep_number:
        trained = [number for number in work.legs if work.of_sweep(number).metrics.is_file()]
        return work.of_sweep(leg_record.chosen(work) or max(trained, default=0))
    if work.number or not work.rounds:
        return work
    try:
        return work.round(record.chosen(work)[0])
    except TrainerError:
        trained = [number for number in work.rounds if work.round(number).metrics.is_file()]
        return work.round(trained[-1]) if trained else work


@dataclass(frozen=True)
class Round:
    """A round that was judged. after: report of the next one, which has KL and NLL of the policy that this one trained; None without it."""

    report: RoundReport
    after: RoundReport | None


def rounds_of(work: WorkDir) -> list[Round]:
    """The rounds with figures, but for the comparison after the last one."""
    reports = [report for number in work.rounds if (report := _read(work.round(number))) is not None]
    after = {report.round - 1: report for report in reports}
    return [Round(report, after.get(report.round)) for report in reports if report.pairs or report.ended]


def rounds_rows(work: WorkDir) -> list[list[str]]:
    """A line of texts for each round, as TITLES names them."""
    rows = []
    for each in rounds_of(work):
        report, trained = each.report, each.after
        error = "" if report.win_rate_error is None else f" ± {report.win_rate_error:.2f}"
        rows.append(
            [
                str(report.round),
                f"{report.pairs} of {report.prompts}",
                _number(report.win_rate_previous) + error,
                _number(report.win_rate_initial),
                _number(report.win_rate_length_controlled),
                _number(trained.kl_to_initial if trained else None),
                _number(trained.own_nll if trained else None),
                _number(report.ended_share),
                report.ended,
            ]
        )
    return rows


def rounds_table(work: WorkDir) -> Table | None:
    """A line for each round that was judged; None without any."""
    rows = rounds_rows(work)
    if not rows:
        return None
    table = Table(title="Rounds", title_justify="left", title_style="bold")
    for title in TITLES:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _read(leg: WorkDir) -> RoundReport | None:
    try:
        return record.read_report(leg)
    except TrainerError:
        return None
