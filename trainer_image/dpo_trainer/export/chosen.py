"""The export of a job with rounds: that of the round which is chosen, at the root of the work folder."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from dpo_operator.api.model import AdapterType
from dpo_operator.api.types import DPOJob
from dpo_trainer.checkpoint.trust import Trust
from dpo_trainer.export import phase
from dpo_trainer.rounds import record
from dpo_trainer.runtime.errors import input_not_found, volume_error
from dpo_trainer.runtime.files import remove, sha256
from dpo_trainer.runtime.workdir import WorkDir

Progress = Callable[[str], None]


def of_round(job: DPOJob) -> DPOJob:
    """The job as a round exports it: adapters are merged in the job's own export alone, since the next round needs none of that."""
    spec = job.spec
    return job.model_copy(
        update={"spec": spec.model_copy(update={"export": spec.export.model_copy(update={"merge": False})})}
    )


def run(job: DPOJob, work: WorkDir, *, progress: Progress, trust: Trust | None = None) -> tuple[str, int]:
    """Make the job's export; returns its folder, relative to the work folder, and the round. work: of the job.

    Its files are links to those of the round's export, or copies where the file system has no links; with export.merge it is exported again.
    Raises TrainerError as export.phase.run does.
    """
    number, why = record.chosen(work)
    leg = work.round(number)
    progress(f"exporting round {number}: {why}")
    if job.spec.export.merge and job.spec.adapter.type is not AdapterType.NONE:
        # The operator keeps the record of the newest round alone. Of an earlier one the export that the next round trained on is believed, too.
        newest = max(each for each in work.rounds if work.round(each).export.is_dir())
        trust = trust if number == newest else None
        return phase.run(job, leg, progress=progress, trust=trust, target=work.export), number
    if not (leg.export / phase.PROVENANCE).is_file():
        raise input_not_found(
            f"{leg.export}: expected the export of round {number}, found none; export that round first"
        )
    if not _is_same(leg.export, leg.export):
        raise volume_error(
            f"{leg.export}: a file is not the one that was exported, by the digests in {phase.PROVENANCE}; something changed the volume. "
            f"Delete that folder, and run the job again to export round {number} again"
        )
    if not _is_same(leg.export, work.export):
        temporary = work.export.with_name(f".{work.export.name}.tmp")
        remove(temporary)
        shutil.copytree(leg.export, temporary, copy_function=_linked)
        phase.replace_folder(temporary, work.export)
    return work.export.relative_to(work.root).as_posix(), number


def _linked(source: str, target: str) -> str:
    """Link a file, or copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def _is_same(source: Path, target: Path) -> bool:
    """Whether a folder is an unchanged copy of an export."""
    try:
        content = (source / phase.PROVENANCE).read_bytes()
        files = json.loads(content)["files"]
        return (target / phase.PROVENANCE).read_bytes() == content and all(
            sha256(target / name) == digest for name, digest in files.items()
        )
    except (OSError, ValueError, LookupError, AttributeError):
        return False
