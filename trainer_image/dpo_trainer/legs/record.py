"""Files of a sweep: the figures of each leg, and the choice."""

import json
from typing import Any

from dpo_operator.api.sweep.grid import Sweep
from dpo_operator.api.sweep.report import LegReport
from dpo_trainer.runtime.files import commit
from dpo_trainer.runtime.workdir import WorkDir


def write_report(work: WorkDir, report: LegReport) -> None:
    """Commit the figures of a leg: from now on it has ended. Raises OSError."""
    work.own.mkdir(parents=True, exist_ok=True)
    commit(work.leg_report, report.model_dump_json(indent=1).encode())


def read_report(work: WorkDir) -> LegReport | None:
    """The figures of a leg; None while it has not ended, and for a file that is damaged: then the leg resumes from its last checkpoint."""
    try:
        return LegReport.model_validate_json(work.leg_report.read_bytes())
    except (OSError, ValueError):
        return None


def read_reports(work: WorkDir) -> list[LegReport]:
    """The figures of all legs that have ended, in their order."""
    found = (read_report(work.of_sweep(number)) for number in work.legs)
    return [report for report in found if report is not None]


def write_choice(sweep: Sweep, work: WorkDir) -> None:
    """Commit which leg is exported, by what, and the table of all. work: of that leg. Raises OSError."""
    document: dict[str, Any] = {
        "leg": work.sweep_number,
        "settings": sweep.point(work.sweep_number),
        "select": sweep.select,
        "legs": [report.model_dump(mode="json") for report in read_reports(work)],
    }
    commit(work.chosen_leg, (json.dumps(document, indent=1) + "\n").encode())


def chosen(work: WorkDir) -> int | None:
    """Number of the leg that is exported; None before there is an export."""
    try:
        number = json.loads(work.chosen_leg.read_text(encoding="utf-8"))["leg"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return number if isinstance(number, int) and number in work.legs else None
