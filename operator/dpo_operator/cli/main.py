"""Commands of `dpo`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpo_operator.api import exitcodes, names
from dpo_operator.api.allowed.allow import refusals
from dpo_operator.api.models import hardware
from dpo_operator.api.quantity import to_bytes
from dpo_operator.api.sweep.grid import largest_leg
from dpo_operator.api.types import DPOJob
from dpo_operator.cli import inspect, local, localfolder, modelsource, planview, steer
from dpo_operator.cli.checked import AllowEnv, JobFile, allowed, console, read_job, say, say_error, warn
from dpo_operator.cli.parent import signal_at_parents_end
from dpo_operator.sizing import legs, proposal, rounds
from dpo_operator.sizing.export import Stored
from dpo_operator.sizing.work import Pairs

app = typer.Typer(no_args_is_help=True, help="Align a language model on your own GPUs.")

WorkFolder = Annotated[Path | None, typer.Option(help="Where everything goes. Default: runs/<name>.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over: remove what an earlier run left there.")]
Restore = Annotated[
    bool,
    typer.Option(
        "--restore", help="Go on from the mirror of a lost work folder; the mirror is this run's from then on."
    ),
]
Claims = Annotated[Path, typer.Option(help="Folder that stands for the claims of pvc:// sources.")]
MetricsPort = Annotated[int, typer.Option(min=0, max=65535, help="Port of /metrics and /status; 0 takes a free one.")]


@app.command()
def run(
    file: JobFile,
    work_dir: WorkFolder = None,
    fresh: Fresh = False,
    restore: Restore = False,
    claims: Claims = Path("claims"),
    metrics_port: MetricsPort = names.METRICS_PORT,
    allow_env: AllowEnv = None,
) -> None:
    """Run a DPOJob on this machine: prepare, train, export. Run it again to resume after a stop.

    After a failure in training, all ranks restart from the last checkpoint as spec.failurePolicy says.
    """
    job = read_job(file, allowed(allow_env))
    warn(job, claims)
    _run(job, local.LocalRun.run, work_dir, fresh, claims, metrics_port, restore=restore)


@app.command()
def preview(
    file: JobFile,
    work_dir: WorkFolder = None,
    fresh: Fresh = False,
    claims: Claims = Path("claims"),
    allow_env: AllowEnv = None,
) -> None:
    """Prepare a DPOJob's data here; print their report, and the first pairs as tokens with what enters the loss (mask 1)."""
    _run(read_job(file, allowed(allow_env)), local.LocalRun.preview, work_dir, fresh, claims, 0)


def _run(
    job: DPOJob,
    what: Callable[[local.LocalRun], int],
    work_dir: Path | None,
    fresh: bool,
    claims: Path,
    metrics_port: int,
    *,
    restore: bool = False,
) -> None:
    work = (work_dir or Path("runs") / job.metadata.name).resolve()
    try:
        if fresh and restore:
            raise localfolder.LocalRunError("--fresh starts over and --restore goes on: give one of them")
        uid = localfolder.remove(work) if fresh else None
        how = names.Restore.NOTHING if fresh else names.Restore.OTHERS if restore else names.Restore.OWN
        here = local.LocalRun(
            job,
            work,
            claims.resolve(),
            metrics_port,
            say,
            how,
            uid,
        )
        code = what(here)
    except localfolder.LocalRunError as error:
        say_error(str(error))
        raise typer.Exit(exitcodes.ExitCode.INVALID_CONFIGURATION) from error
    raise typer.Exit(code)


@app.command()
def validate(
    file: JobFile,
    data: Annotated[
        bool,
        typer.Option(
            "--data", help="Also look at the first rows of data on this machine: which format, and what is refused."
        ),
    ] = False,
    claims: Claims = Path("claims"),
    allow_env: AllowEnv = None,
) -> None:
    """Check a DPOJob file without a cluster.

    Notes say what a cluster refuses unless its administrator allows it, warnings which settings guides to DPO call dangerous.
    """
    allow = allowed(allow_env)
    job = read_job(file, allow)
    for line in refusals(job.spec, allow, image="", namespace=job.metadata.namespace):
        say(f"note: {line}")
    if cost := rounds.estimate(job.spec, Stored(0, 0, 0), None):
        say(f"note: {cost.says}")
    if sweep := legs.estimate(job.spec, Stored(0, 0, 0)):
        say(f"note: {sweep.says}")
    warn(job, claims)
    console.print(f"{file}: {names.KIND} {job.metadata.name} is valid")
    if data:
        raise typer.Exit(local.look(job, claims.resolve()))


@app.command()
def plan(
    file: JobFile,
    gpu: Annotated[str | None, typer.Option(help=f"Kind of GPU: {', '.join(hardware.GPUS)}.")] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Memory of one GPU, or of a CPU job's pod, such as 80Gi.")
    ] = None,
    flops: Annotated[float | None, typer.Option(min=1, help="Measured matrix products of a rank, FLOP/s.")] = None,
    node_link: Annotated[float, typer.Option(min=0.1, help="Each GPU's bandwidth to other nodes, Gbit/s.")] = 400,
    model_config: Annotated[
        Path | None, typer.Option(help="config.json of the model, or its folder.", exists=True)
    ] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(help="Work folder of `dpo run` or `dpo preview`, for the lengths of the pairs.", exists=True),
    ] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=1, help="Mean tokens of a prompt.")] = None,
    answer_tokens: Annotated[float | None, typer.Option(min=1, help="Mean tokens of an answer.")] = None,
    claims: Claims = Path("claims"),
    allow_env: AllowEnv = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate memory and time of a DPOJob, and propose settings that fit and are fast. Nothing is run."""
    job = read_job(file, allowed(allow_env))
    try:
        device = _device(job, gpu, gpu_memory, flops)
        found = modelsource.find(job, config=model_config, work=work_dir, claims=claims)
        reference = modelsource.find_reference(job, work=work_dir, claims=claims)
    except (modelsource.ModelSourceError, ValueError) as error:
        say_error(str(error))
        raise typer.Exit(exitcodes.ExitCode.INVALID_CONFIGURATION) from error
    report = found.report
    pairs = Pairs.of(job.spec, report.tokens if report else None, report.train_pairs if report else None)
    planned = proposal.Job(
        largest_leg(job.spec),
        found.shape,
        pairs.with_means(prompt_tokens, answer_tokens),
        device,
        node_link * 1e9 / 8,
        reference,
    )
    if as_json:
        print(json.dumps(planview.document(planned, found), indent=1))
    else:
        planview.show(planned, found, Console(highlight=False))


def _device(job: DPOJob, gpu: str | None, memory: str | None, flops: float | None) -> hardware.Device:
    """The device of a rank. Raises ValueError."""
    limit = None if memory is None else to_bytes(memory)
    if job.spec.gpus_per_node == 0:
        if gpu is not None:
            raise ValueError(f"--gpu: {gpu} has no use for a job without GPUs (spec.gpusPerNode is 0)")
        pod = job.spec.pod.resources.limits.get("memory")
        return hardware.cpu(flops, limit if pod is None or limit is not None else to_bytes(pod))
    gpu = gpu.lower() if gpu is not None else None
    if gpu is not None and gpu not in hardware.GPUS:
        raise ValueError(f"--gpu: expected one of {', '.join(hardware.GPUS)}, found {gpu!r}")
    device = hardware.GPUS[gpu or "h100"]
    if gpu is None and limit is not None:
        device = replace(device, name=f"GPU of {memory}")
    if limit is not None:
        device = replace(device, memory=limit)
    return device if flops is None else replace(device, flops=flops, flops_fp32=flops, mfu=1.0)


@app.command()
def report(
    work_dir: Annotated[Path, typer.Argument(help="Work folder of a run.", exists=True, file_okay=False)],
) -> None:
    """Print the table of a run and redraw its plot."""
    _trainer("report", "--work-dir", str(work_dir))


@app.command()
def checkpoints(
    folder: Annotated[Path, typer.Argument(help="Work folder of a run, or its folder of checkpoints.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare the SHA-256.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the checkpoints of a run: step, time, size, metrics, and whether they are whole. Needs no torch.

    Exits with 74 when the newest can't be used, with 66 when there is none.
    """
    flags = [flag for flag, given in (("--verify", verify), ("--json", as_json)) if given]
    _trainer("checkpoints", *flags, "--", str(folder))


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, such as runs/job/checkpoints/step-00000050.")],
    to: Annotated[Path | None, typer.Option(help="Target folder. Default: export-step-… in the work folder.")] = None,
    merge: Annotated[
        bool | None,
        typer.Option(
            "--merge/--no-merge", help="Also merge the adapter into the model. Default: the job's export.merge."
        ),
    ] = None,
    work_dir: Annotated[Path | None, typer.Option(help="The run's work folder. Default: the one it is in.")] = None,
    job_file: Annotated[
        Path | None, typer.Option(help="The DPOJob as JSON. Default: job.json in the work folder.")
    ] = None,
) -> None:
    """Write the weights of any checkpoint as safetensors, load and check them. Needs no GPU."""
    options = [
        f"{name}={value}"
        for name, value in (("--to", to), ("--work-dir", work_dir), ("--job-file", job_file))
        if value is not None
    ]
    if merge is not None:
        options.append("--merge" if merge else "--no-merge")
    _trainer("export-checkpoint", *options, "--", str(checkpoint))


def _trainer(*arguments: str) -> None:
    """Run the trainer in a process of its own, so that torch is not imported here, and exit with its code."""
    argv = [sys.executable, "-m", "dpo_trainer", *arguments]
    setup = signal_at_parents_end(signal.SIGTERM)
    raise typer.Exit(subprocess.run(argv, env=dict(os.environ), check=False, preexec_fn=setup).returncode)


app.add_typer(inspect.app)
app.add_typer(steer.app)
