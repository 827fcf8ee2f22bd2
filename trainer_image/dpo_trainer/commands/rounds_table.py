"""The rounds of a job as a table: what came of each, and what the policy that it trained is worth."""

from rich.table import Table

from dpo_operator.api.reports import RoundReport
from dpo_trainer.legs import record as leg_record
from dpo_trainer.rounds import record
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir


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


def rounds_table(work: WorkDir) -> Table | None:
    """A line for each round that was judged; None without any."""
    reports = [report for number in work.rounds if (report := _read(work.round(number))) is not None]
    if not reports:
        return None
    # KL and NLL are of the policy that a round begins with, so those of what it trained are in the next one's report.
    after = {report.round - 1: report for report in reports}
    table = Table(title="Rounds", title_justify="left", title_style="bold")
    titles = ("round", "pairs", "win rate", "against initial", "at equal length", "KL", "own NLL", "ended", "end")
    for title in titles:
        table.add_column(title, justify="right")
    for report in reports:
        if not report.pairs and not report.ended:
            continue  # of the comparison after the last round
        trained = after.get(report.round)
        rate = _number(report.win_rate_previous)
        error = "" if report.win_rate_error is None else f" ± {report.win_rate_error:.2f}"
        table.add_row(
            str(report.round),
            f"{report.pairs} of {report.prompts}",
            rate + error,
            _number(report.win_rate_initial),
            _number(report.win_rate_length_controlled),
            _number(trained.kl_to_initial if trained else None),
            _number(trained.own_nll if trained else None),
            _number(report.ended_share),
            report.ended,
        )
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _read(leg: WorkDir) -> RoundReport | None:
    try:
        return record.read_report(leg)
    except TrainerError:
        return None
