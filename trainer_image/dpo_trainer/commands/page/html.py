"""report.html: one file without a script and without a request, whose texts are all escaped."""

from typing import Any

from dpo_operator.api.types import DPOJob
from dpo_trainer.commands.legs_table import TITLES as LEG_TITLES
from dpo_trainer.commands.legs_table import legs_rows
from dpo_trainer.commands.page import content
from dpo_trainer.commands.rounds_table import TITLES, rounds_of, rounds_rows
from dpo_trainer.commands.run_log import Run
from dpo_trainer.commands.selected import selected
from dpo_trainer.runtime.workdir import WorkDir

PAGE = "report.html"


def page(
    run: Run, work: WorkDir, job: DPOJob | None, columns: list[str], result: list[tuple[str, list[str]]], summary: str
) -> str:
    """The page. columns, result, summary: of the table of report.txt. Raises ImportError without jinja2."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Rows and answers are a stranger's text: everything is escaped, and a name that is misspelt is an error.
    environment = Environment(
        loader=PackageLoader("dpo_trainer.commands.page", "."), autoescape=True, undefined=StrictUndefined
    )
    job = job or content.job_of(work)
    values: dict[str, Any] = {
        "name": job.metadata.name if job is not None else work.root.name,
        "summary": summary,
        "findings": content.findings(work),
        "no_findings": _no_findings(work, job),
        "round_columns": TITLES,
        "rounds": rounds_rows(work),
        "round_charts": content.round_charts(rounds_of(work)),
        "leg_columns": LEG_TITLES,
        "legs": legs_rows(work),
        "leg_charts": content.leg_charts(work),
        "columns": columns,
        "result": result,
        "charts": content.charts(run),
        "selected": selected(work),
        "by_length": content.by_length(run),
        "samples": content.samples(run),
        "loading": content.loading(work),
        "cost": content.cost(run, work, job),
        "restarts": content.restarts(work),
        "data_report": content.data_report(work),
        "settings": content.settings(job),
    }
    return environment.get_template("page.html.j2").render(values)


def _no_findings(work: WorkDir, job: DPOJob | None) -> str:
    if job is not None and not job.spec.diagnosis.enabled:
        return "spec.diagnosis.enabled is false, so the rules did not look at this run."
    if not work.diagnosis.is_file():
        return "The rules have not looked at this run."
    return "No finding speaks against the learning of this run."
