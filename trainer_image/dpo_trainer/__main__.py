"""`python -m dpo_trainer prepare|launch|generate|judge|train|export|mirror|report|preview|look`: one phase of one job, and its exit code.

`checkpoints` and `export-checkpoint` are in commands/checkpoints.py.

Heavy modules are imported by the phase that needs them: the metrics server has to answer before torch is loaded.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpo_operator.api import names
from dpo_trainer.commands import checkpoints


@dataclass(frozen=True)
class Arguments:
    """The command line, with the environment's defaults. phase: that launch starts."""

    command: str
    job_file: Path
    work_dir: Path
    phase: Literal["train", "generate"] = "train"


def parse(argv: Sequence[str]) -> Arguments:
    """Read the command line; a wrong one ends the process with status 2 and the usage."""
    parser = argparse.ArgumentParser(prog="dpo-trainer", description="Phases of a DPOJob.")
    parser.add_argument(
        "command",
        choices=("prepare", "launch", "generate", "judge", "train", "export", "mirror", "report", "preview", "look"),
        help="launch starts one process of a phase for each local rank; mirror copies new checkpoints to checkpoint.mirror; other commands run that phase",
    )
    parser.add_argument(
        "--job-file",
        type=Path,
        default=Path(os.environ.get(names.ENV_JOB_FILE, names.JOB_FILE)),
        help=f"the DPOJob as JSON (default: ${names.ENV_JOB_FILE}, {names.JOB_FILE})",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path(os.environ.get(names.ENV_WORK_DIR, names.WORK_DIR)),
        help=f"the job's folder (default: ${names.ENV_WORK_DIR}, {names.WORK_DIR})",
    )
    parser.add_argument(
        "--phase", choices=("train", "generate"), default="train", help="what launch starts (default: train)"
    )
    given = parser.parse_args(argv)
    if given.command != "launch" and given.phase != "train":
        parser.error("--phase is for launch")
    return Arguments(given.command, given.job_file, given.work_dir, given.phase)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a phase, or a command on checkpoints, and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in checkpoints.COMMANDS:
        return checkpoints.main(argv)
    arguments = parse(argv)
    if arguments.command == "launch":
        from dpo_trainer.launch import launcher

        return launcher.run(arguments.job_file, arguments.work_dir, phase=arguments.phase)
    if arguments.command == "mirror":
        from dpo_trainer.mirror import phase as mirror
        from dpo_trainer.runtime.workdir import WorkDir

        return mirror.run(arguments.job_file, WorkDir(arguments.work_dir))
    from dpo_trainer.launch import stacks

    stacks.register()

    def run() -> int:
        from dpo_trainer import phases

        return phases.run(arguments.command, arguments.job_file, arguments.work_dir)

    if arguments.command != "prepare":
        return run()
    from dpo_trainer.launch import guard

    def last_words(code: int, message: str) -> int:
        from dpo_trainer import phases

        return phases.leave_last_words("prepare", code, message, arguments.work_dir)

    return guard.run(run, last_words)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # os._exit: threads of NCCL or of a broken process group must not delay the exit or change its code.
    os._exit(code)
