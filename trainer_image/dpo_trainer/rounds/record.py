"""What is kept of the rounds: figures of each, and which one is exported."""

import json

from dpo_operator.api.reports import RoundReport
from dpo_trainer.runtime.errors import input_not_found, volume_error
from dpo_trainer.runtime.files import commit, sync_folder
from dpo_trainer.runtime.workdir import WorkDir


def write_report(work: WorkDir, report: RoundReport) -> None:
    """Commit the figures of a round. Raises OSError."""
    work.own.mkdir(parents=True, exist_ok=True)
    commit(work.round_report, report.model_dump_json(indent=1).encode())


def read_report(work: WorkDir) -> RoundReport:
    """The figures of a round. Raises TrainerError INPUT_NOT_FOUND without any."""
    try:
        return RoundReport.model_validate_json(work.round_report.read_bytes())
    except (OSError, ValueError) as error:
        raise input_not_found(
            f"{work.round_report}: expected the figures of a round, found {error}; judge it again"
        ) from error


def choose(work: WorkDir, number: int, why: str) -> None:
    """Commit which round is exported, where it is not the last one. why: for people. Raises OSError."""
    commit(work.chosen, json.dumps({"round": number, "why": why}).encode())


def choose_last(work: WorkDir) -> None:
    """Forget a choice: the last round is exported. Raises OSError."""
    if work.chosen.is_file():
        work.chosen.unlink()
        sync_folder(work.chosen.parent)


def chosen(work: WorkDir) -> tuple[int, str]:
    """The round that the job exports, and why. Raises TrainerError INPUT_NOT_FOUND when none was exported."""
    if work.chosen.is_file():
        try:
            found = json.loads(work.chosen.read_text(encoding="utf-8"))
            return int(found["round"]), str(found["why"])
        except (ValueError, LookupError, TypeError) as error:
            raise volume_error(
                f"{work.chosen}: expected the number of a round, found {error}; judge the last round again"
            ) from error
    there = [number for number in work.rounds if work.round(number).export.is_dir()]
    if not there:
        raise input_not_found(f"{work.root / 'rounds'}: expected the export of a round, found none; train first")
    return there[-1], "the last round"
