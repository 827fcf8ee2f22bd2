"""`python -m dpo_trainer checkpoints|export-checkpoint`: user commands on the checkpoints of a run."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.manifest import MANIFEST
from dpo_trainer.runtime import termination
from dpo_trainer.runtime.errors import input_not_found, invalid_configuration
from dpo_trainer.runtime.libraries import quiet_libraries
from dpo_trainer.runtime.workdir import WorkDir

COMMANDS = ("checkpoints", "export-checkpoint")


def main(argv: Sequence[str]) -> int:
    """Run a command and return its exit code. Raises nothing but the end after a wrong command line: an error becomes a message on standard error."""
    given = _parse(argv)
    quiet_libraries()
    try:
        if given.command == "checkpoints":
            from dpo_trainer.commands import listing

            return int(listing.run(given.folder, verify=given.verify, as_json=given.json))
        _export(given.checkpoint, given.work_dir, given.job_file, given.to, merge=given.merge)
    except BaseException as error:
        code, message = termination.classify(error)
        print(f"{given.command}: {message}", file=sys.stderr, flush=True)
        return int(code)
    return int(ExitCode.OK)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dpo-trainer", description="Checkpoints of a run.")
    commands = parser.add_subparsers(dest="command", required=True)
    listed = commands.add_parser("checkpoints", help="list checkpoints and their validity")
    listed.add_argument("folder", type=Path, help="a run's work folder, or its folder of checkpoints")
    listed.add_argument("--verify", action="store_true", help="read every byte")
    listed.add_argument("--json", action="store_true", help="print JSON")
    exported = commands.add_parser("export-checkpoint", help="export one checkpoint as safetensors")
    exported.add_argument("checkpoint", type=Path, help="its folder, such as runs/job/checkpoints/step-00000050")
    exported.add_argument("--to", type=Path, help="folder to make (default: export-step-… in the work folder)")
    exported.add_argument(
        "--merge",
        action=argparse.BooleanOptionalAction,
        help="also merge the adapter into the model (default: as the job's export.merge)",
    )
    exported.add_argument("--work-dir", type=Path, help="the run's work folder (default: the one it is in)")
    exported.add_argument("--job-file", type=Path, help="the DPOJob as JSON (default: job.json in the work folder)")
    return parser.parse_args(argv)


def _export(folder: Path, work_dir: Path | None, job_file: Path | None, to: Path | None, *, merge: bool | None) -> None:
    """Export one checkpoint. Raises TrainerError, OSError or pydantic's ValidationError."""
    from dpo_operator.api.model import AdapterType
    from dpo_trainer.export import phase as export
    from dpo_trainer.runtime.job import of_leg, read_job

    folder = folder.absolute()
    if not (folder / MANIFEST).is_file():
        raise input_not_found(
            f"{folder}: expected the folder of a checkpoint, such as runs/job/checkpoints/{layout.folder_name(50)}, found no "
            f"{MANIFEST} in it"
        )
    found = WorkDir.of_checkpoint(folder)
    work = WorkDir((work_dir or found.root).absolute(), found.leg)
    job = of_leg(read_job(job_file or work.root / "job.json"), work.sweep_number)
    if merge is not None:
        if merge and job.spec.adapter.type is AdapterType.NONE:
            raise invalid_configuration("--merge: this run trained all weights, so there is no adapter to merge")
        job = job.model_copy(
            update={"spec": job.spec.model_copy(update={"export": job.spec.export.model_copy(update={"merge": merge})})}
        )
    target = (to or work.root / f"export-{folder.name}").absolute()
    export.export_one(job, work, folder, target, progress=lambda line: print(line, file=sys.stderr, flush=True))
