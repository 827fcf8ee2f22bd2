"""`python -m dpo_trainer mirror`: copies what is new to the mirror, and ends. It runs beside the training, never in its pods."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from dpo_operator.api import access as api
from dpo_operator.api import exitcodes, names
from dpo_operator.api.reports import CheckpointRef, MirrorReport
from dpo_operator.api.types import DPOJob
from dpo_trainer.checkpoint.trust import Trust, trust_from_environment
from dpo_trainer.mirror import run_files
from dpo_trainer.mirror.place import Place, owner_of
from dpo_trainer.mirror.restore import restore
from dpo_trainer.mirror.save import save
from dpo_trainer.prepare.record import checkpoint_owner
from dpo_trainer.runtime.errors import input_not_found, invalid_configuration
from dpo_trainer.runtime.job import mirror_credentials_folder, read_job, secrets, stop_by_exception
from dpo_trainer.runtime.termination import classify, redact, termination_log
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.sources.access import from_environment
from dpo_trainer.sources.remote_folder import open_folder


def run(job_file: Path, work: WorkDir) -> int:
    """Copy, and write a MirrorReport as the termination message. Raises nothing; returns an exit code of the shared table."""
    try:
        stop_by_exception()
        job = read_job(job_file, begun=True, digest=os.environ.get(names.ENV_JOB_FILE_SHA256))
        report = MirrorReport(exit_code=0, checkpoint=_copy(job, work))
    except BaseException as error:  # also Stopped
        code, message = classify(error)
        message = redact(message, secrets())
        print(f"mirror: {exitcodes.info(code).reason}: {message}", file=sys.stderr, flush=True)
        report = MirrorReport(exit_code=int(code), reason=exitcodes.info(code).reason, message=message)
    path = termination_log(work.root, "mirror", 1)
    try:
        path.write_text(report.to_text(), encoding="utf-8")
    except OSError as error:
        print(f"The termination message could not be written to {path}: {error}", file=sys.stderr, flush=True)
    return report.exit_code


def fetch(job: DPOJob, work: WorkDir, how: names.Restore, progress: Callable[[str, float], None]) -> None:
    """Fetch the newest checkpoint of the mirror onto a volume that has none, where model and data are prepared.

    how: what may be fetched; with NOTHING it is only seen that the mirror is the job's own, or is not begun.
    Raises as restore does, and TrainerError INPUT_NOT_FOUND when the operator or `dpo run --restore` asks for it and there is none.
    """
    spec = job.spec
    trust = trust_from_environment(required=spec.checkpoint.require_recorded_digest)
    place = _place(job, trust)
    if how == names.Restore.NOTHING:
        place.look()
        return
    source = place.of_namesake() if how == names.Restore.OTHERS else place
    found = restore(source, work.checkpoints, checkpoint_owner(spec, work, trust), progress)
    if source != place:
        place.take_over()
    if found is not None:
        run_files.restore(place, work, found.step, progress)
        progress(f"the mirror's checkpoint of step {found.step} is on the volume", 1.0)
    elif trust is not None or how == names.Restore.OTHERS:
        raise input_not_found(
            f"{place.folder.url}: expected a checkpoint of this job, which had begun, found none. Restore one there, or create the job again to train "
            "from the start."
        )


def _copy(job: DPOJob, work: WorkDir) -> CheckpointRef:
    trust = trust_from_environment(required=True)
    place = _place(job, trust)
    copied = save(place, work.checkpoints, job.spec.checkpoint, trust, _say)
    run_files.save(place, work, _say)
    return copied


def _place(job: DPOJob, trust: Trust | None) -> Place:
    mirror = job.spec.checkpoint.mirror
    if mirror is None:
        raise invalid_configuration("spec.checkpoint.mirror: is not set, so there is no mirror")
    own = mirror.credentials_secret_ref
    folder = None if own is None else mirror_credentials_folder()
    access = from_environment(job.spec.way_out, own, api.MIRROR_CREDENTIALS_FIELD, folder)
    return Place(open_folder(mirror.to, access), owner_of(job, trust))


def _say(text: str) -> None:
    print(f"mirror: {text}", flush=True)
