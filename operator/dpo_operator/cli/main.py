"""Commands of `dpo`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from dpo_operator.api import exitcodes, names
from dpo_operator.api.types import DPOJob
from dpo_operator.cli import jobfile, local

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Align a language model on your own GPUs.")
console = Console(stderr=True, highlight=False)

JobFile = Annotated[Path, typer.Argument(help="File with a DPOJob.", exists=True, dir_okay=False)]


def _read(path: Path) -> DPOJob:
    try:
        return jobfile.read(path)
    except jobfile.JobFileError as error:
        for line in str(error).splitlines():
            console.print(f"[red]error:[/red] {escape(line)}", soft_wrap=True)
        raise typer.Exit(exitcodes.ExitCode.INVALID_CONFIGURATION) from error


@app.command()
def run(
    file: JobFile,
    work_dir: Annotated[Path | None, typer.Option(help="Where everything goes. Default: runs/<name>.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: remove what an earlier run left there.")] = False,
    claims: Annotated[Path, typer.Option(help="Folder that stands for the claims of pvc:// sources.")] = Path("claims"),
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of /metrics and /status; 0 takes a free one.")
    ] = names.METRICS_PORT,
) -> None:
    """Run a DPOJob on this machine: prepare, train, export. Run it again to go on after a stop."""
    job = _read(file)
    work = (work_dir or Path("runs") / job.metadata.name).resolve()
    try:
        if fresh:
            local.remove(work)
        code = local.LocalRun(
            job, work, claims.resolve(), metrics_port, lambda line: console.print(escape(line), soft_wrap=True)
        ).run()
    except local.LocalRunError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(exitcodes.ExitCode.INVALID_CONFIGURATION) from error
    raise typer.Exit(code)


@app.command()
def validate(file: JobFile) -> None:
    """Check a DPOJob file without a cluster."""
    job = _read(file)
    console.print(f"{file}: {names.KIND} {job.metadata.name} is valid")


@app.command()
def report(
    work_dir: Annotated[Path, typer.Argument(help="Work folder of a run.", exists=True, file_okay=False)],
) -> None:
    """Print the table of a run and draw its picture anew."""
    argv = [
        sys.executable,
        "-m",
        "dpo_trainer",
        "report",
        "--work-dir",
        str(work_dir),
        "--job-file",
        str(work_dir / "job.json"),
    ]
    raise typer.Exit(subprocess.run(argv, env=dict(os.environ), check=False).returncode)
