"""What commands share: job files, read and checked, and what is printed beside an answer."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from dpo_operator.api import exitcodes
from dpo_operator.api.allowed.allow import Allow
from dpo_operator.api.rules.advice import advice
from dpo_operator.api.text import sentences
from dpo_operator.api.types import DPOJob
from dpo_operator.cli import jobfile, modelsource

console = Console(stderr=True, highlight=False)

JobFile = Annotated[Path, typer.Argument(help="File with a DPOJob.", exists=True, dir_okay=False)]
AllowEnv = Annotated[
    list[str] | None,
    typer.Option(
        help="A variable that pod.env may set in addition to those that every cluster allows, or the beginning of some: 'WANDB_*'."
    ),
]


def say(text: str) -> None:
    """Print what is not part of the answer. text: without markup."""
    console.print(escape(text), soft_wrap=True)


def say_error(text: str) -> None:
    """Print what a command could not do. text: without markup."""
    console.print(f"[red]error:[/red] {escape(text)}", soft_wrap=True)


def allowed(env: list[str] | None) -> Allow:
    """What `--allow-env` says. Raises typer.Exit for what is no name."""
    try:
        return Allow(env=tuple(env or ()))
    except ValidationError as error:
        say_error(f"--allow-env: {'; '.join(sentences(error))}")
        raise typer.Exit(exitcodes.ExitCode.INVALID_CONFIGURATION) from error


def read_job(path: Path, allow: Allow) -> DPOJob:
    """A valid job file. Prints what is wrong with any other, and raises typer.Exit."""
    try:
        return jobfile.read(path, allow)
    except jobfile.JobFileError as error:
        for line in str(error).splitlines():
            say_error(line)
        raise typer.Exit(exitcodes.ExitCode.INVALID_CONFIGURATION) from error


def warn(job: DPOJob, claims: Path) -> None:
    """Say which settings guides call dangerous."""
    for line in advice(job.spec, modelsource.parameters_here(job, claims)):
        console.print(f"[yellow]warning:[/yellow] {escape(str(line))}", soft_wrap=True)
