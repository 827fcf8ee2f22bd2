"""The work folder of `dpo run`: whose it is, that one command at a time works in it, and which legs of a sweep have ended."""

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpo_operator.api import names
from dpo_operator.api.rules import resuming
from dpo_operator.api.statusparts.legs import LegStatus
from dpo_operator.api.sweep.grid import MAX_LEGS
from dpo_operator.api.sweep.report import LegReport
from dpo_operator.api.types import DPOJob, DPOJobSpec


class LocalRunError(Exception):
    """The run can't start or resume."""


def write_job_file(work: Path, job: DPOJob, uid: str | None) -> None:
    """Write job.json, and refuse a folder that holds another job's state. uid: of the run in a new folder. Raises LocalRunError and OSError."""
    path = work / "job.json"
    document = document_of(job)
    if path.exists():
        earlier = _job_of(work)
        before, now = _without_defaults(earlier["spec"]), _without_defaults(document["spec"])
        if changed := resuming.changed(before, now):
            raise LocalRunError(
                f"{work} holds a run with other settings ({', '.join(changed)}). "
                "Use --fresh to start over in it, or --work-dir for another folder."
            )
        document["metadata"]["uid"] = earlier["metadata"]["uid"]
    elif any(work.iterdir()):
        # Otherwise a later --fresh would delete files that this command did not write.
        raise LocalRunError(
            f"{work} is not empty and is not a folder of `dpo run`; name a new or empty folder with --work-dir"
        )
    else:
        document["metadata"]["uid"] = uid or str(uuid.uuid4())
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1))
    temporary.replace(path)


def document_of(job: DPOJob) -> dict[str, Any]:
    """A job file's content."""
    return job.model_dump(mode="json", by_alias=True, exclude_none=True)


def remove(work: Path) -> str | None:
    """Delete a work folder that `dpo run` made; refuse any other folder, and one in use. Returns the UID of its run, which owns its mirror."""
    try:
        if not work.exists() or (work.is_dir() and not any(work.iterdir())):
            return None
        if not (work / "job.json").is_file():
            raise LocalRunError(f"{work} is not a folder of `dpo run` (it has no job.json); nothing was removed")
        uid = _job_of(work)["metadata"].get("uid")
        with locked(work):
            shutil.rmtree(work)
        return uid if isinstance(uid, str) else None
    except OSError as error:
        raise LocalRunError(f"{work} can't be removed: {error}") from error


def _without_defaults(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec without default values, so that a new setting's default equals its absence in an earlier version's spec."""
    try:
        return DPOJobSpec.model_validate(spec).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    except ValidationError:
        return spec  # written by a version with other settings


def _job_of(work: Path) -> dict[str, Any]:
    """The job file of an earlier run. Raises LocalRunError when it is another kind of file."""
    path = work / "job.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        document = None
    parts = (document.get("spec"), document.get("metadata")) if isinstance(document, dict) else (None,)
    if not all(isinstance(part, dict) for part in parts) or document.get("kind") != names.KIND:
        raise LocalRunError(f"{path} is not the job file of a run; use another folder (--work-dir)")
    found: dict[str, Any] = document
    return found


@contextlib.contextmanager
def locked(work: Path) -> Iterator[None]:
    """Keep a second `dpo run` out of a folder: the two would end each other's ranks and mix their metrics.

    Raises LocalRunError. Some network file systems have no locks for folders; there it does nothing.
    """
    folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalRunError(f"another `dpo run` is at work in {work}; wait for it, or stop it") from error
        except OSError:
            pass
        yield
    finally:
        os.close(folder)


def legs_of(folder: Path) -> list[LegReport]:
    """Figures of the legs that have ended, from the first on, in their order; a leg whose file can't be read has not ended."""
    found: list[LegReport] = []
    for number in range(1, MAX_LEGS + 1):
        try:
            text = (folder / names.leg_folder(number) / "leg.json").read_text(encoding="utf-8")
            found.append(LegReport.model_validate_json(text))
        except (OSError, ValueError):
            break
    return found


def leg_statuses(folder: Path) -> list[LegStatus]:
    """The same as a status has them, with the leg that is exported."""
    try:
        chosen = json.loads((folder / "legs" / "chosen.json").read_text(encoding="utf-8"))["leg"]
    except (OSError, ValueError, LookupError, TypeError):
        chosen = None
    return [
        LegStatus.of(report, report.settings, []).model_copy(update={"chosen": report.leg == chosen})
        for report in legs_of(folder)
    ]


def is_busy(folder: Path) -> bool:
    """Whether a `dpo run` holds the folder."""
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # some network file systems have no locks for folders
    finally:
        os.close(number)
    return False
