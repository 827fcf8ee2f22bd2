"""The common frame of all phases: read the job, run, write the termination message, return the exit code."""

import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dpo_operator.api import names
from dpo_operator.api.access import hub_repository, is_registry
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.model import AdapterType
from dpo_operator.api.reports import PushReport, Termination
from dpo_operator.api.training import Push
from dpo_operator.api.types import DPOJob
from dpo_trainer.checkpoint.folder import CheckpointFolder
from dpo_trainer.distributed import rendezvous
from dpo_trainer.legs.record import read_report, write_choice
from dpo_trainer.rounds import phase as judge_phase
from dpo_trainer.runtime.devices import cuda_of_torch, driver_problem, has_gpu
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.files import commit
from dpo_trainer.runtime.job import (
    attempt_from_environment,
    claims_folder,
    hub_token,
    leg_from_environment,
    of_leg,
    read_job,
    secrets,
    stop_by_exception,
    stop_on_request,
    tracked,
)
from dpo_trainer.runtime.libraries import import_tokenizers_alone, quiet_libraries
from dpo_trainer.runtime.termination import (
    build_termination,
    classify,
    may_write,
    redact,
    termination_log,
    write_termination,
)
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry

if TYPE_CHECKING:
    from dpo_trainer.sources.access import Access

_LOCAL = (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))


def run(command: str, job_file: Path, work_dir: Path) -> int:
    """Run a phase, or report, preview or look. Raises nothing: whatever ends it becomes an exit code and a message."""
    work = WorkDir(work_dir)
    if command in ("report", "preview", "look"):
        return _show(command, work, job_file)
    quiet_libraries()
    phase = cast(names.Phase, command)  # checked by argparse
    rank = int(os.environ.get("RANK", "0"))
    telemetry: Telemetry | None = None
    attempt = 1
    try:
        attempt = attempt_from_environment()
        work = leg_from_environment(work)
        job = read_job(job_file, begun=phase != "prepare", digest=os.environ.get(names.ENV_JOB_FILE_SHA256))
        telemetry = Telemetry(
            phase,
            attempt,
            work,
            rank=rank,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            checkpoints=CheckpointFolder(work.checkpoints),
        )
        termination = _PHASES[phase](job, work, telemetry, attempt)
    except BaseException as error:  # also Stopped, SystemExit, and a panic in a library that is written in Rust
        code, message = classify(error)
        if code == ExitCode.INTERNAL_ERROR:
            traceback.print_exc()
        termination = build_termination(phase, attempt, code, redact(message, secrets()))
        _log(termination)
    else:
        if termination.exit_code and rank == 0:  # a stop that all ranks agreed on
            _log(termination)
    termination = termination.model_copy(update={"rank": rank, "progress": telemetry.progress if telemetry else None})
    if telemetry is not None:
        telemetry.close(termination.exit_code)
    path = termination_log(work.root, phase, attempt)
    local_rank, local_world_size = (int(os.environ.get(name, alone)) for name, alone in _LOCAL)
    if may_write(path, termination, local_rank=local_rank, local_world_size=local_world_size):
        write_termination(path, termination)
    return termination.exit_code


def leave_last_words(phase: names.Phase, code: int, message: str, work_dir: Path) -> int:
    """Write the termination message of a phase whose process was killed; returns the exit code."""
    try:
        attempt = attempt_from_environment()
    except TrainerError:
        attempt = 1
    termination = build_termination(phase, attempt, code, redact(message, secrets()))
    _log(termination)
    write_termination(termination_log(work_dir, phase, attempt), termination)
    return code


def _log(termination: Termination) -> None:
    print(f"{termination.phase}: {termination.reason}: {termination.message}", file=sys.stderr, flush=True)


def _prepare(job: DPOJob, work: WorkDir, telemetry: Telemetry, attempt: int) -> Termination:
    stop_by_exception()
    telemetry.activity("preparing model and data")
    telemetry.serve()
    from dpo_trainer.sources.access import from_environment

    access = from_environment(job.spec.way_out)
    access.apply(work.root / ".cache")
    # What an adapter covers is asked of the model's modules. A folder that was prepared before may need no tokenizer at all.
    if job.spec.adapter.type is AdapterType.NONE and not work.prepared.exists():
        import_tokenizers_alone()
    from dpo_trainer.prepare import phase as prepare
    from dpo_trainer.prepare import warnings
    from dpo_trainer.prepare.inputs import Inputs
    from dpo_trainer.sources.cache import Cache

    def progress(text: str, share: float) -> None:
        telemetry.activity(f"{text} ({share:.0%})")
        telemetry.alive()

    if (rounds := job.spec.iterative) is not None:
        from dpo_trainer.judging import check_settings

        check_settings(rounds.judge)
    cache = os.environ.get(names.ENV_CACHE_DIR)
    inputs = Inputs(claims_folder(), hub_token(), Cache(Path(cache)) if cache else None, progress, access)
    found = prepare.run(job, work, inputs)
    restore = os.environ.get(names.ENV_RESTORE)
    if restore and job.spec.checkpoint.mirror is not None:
        from dpo_trainer.mirror import phase as mirror

        mirror.fetch(job, work, names.Restore(restore), progress)
    if job.spec.adapter.type is not AdapterType.NONE or job.spec.training.router_aux_loss is not None:
        from dpo_trainer.model.before_training import check

        check(job.spec, work, telemetry, progress)
    resumed = None
    if job.spec.resume_from is not None:
        from dpo_trainer.resuming.take import take

        resumed = take(job.spec, work, inputs)
    warnings.tell_of_data(work, telemetry)
    warnings.keep(work, telemetry)
    return build_termination("prepare", attempt, ExitCode.OK, dataset=found).model_copy(update={"resumed": resumed})


def _check_driver(job: DPOJob) -> None:
    """Every node whose driver is too old says so at once, so that no rank waits for the others or loads anything. Raises TrainerError."""
    if job.spec.training.device != "cpu" and has_gpu(os.environ) and (problem := driver_problem(cuda_of_torch())):
        raise TrainerError(ExitCode.DRIVER_TOO_OLD, problem)


def _train(job: DPOJob, work: WorkDir, telemetry: Telemetry, attempt: int) -> Termination:
    stop_by_exception()
    job, sweep = of_leg(job, work.sweep_number), job.spec.sweep
    if work.sweep_number and (known := read_report(work)) is not None:
        # This leg has ended, and the operator did not hear of it.
        return build_termination("train", attempt, ExitCode.OK, known.message).model_copy(update={"leg": known})
    telemetry.activity("starting")
    _check_driver(job)
    telemetry.serve()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        say = telemetry.activity if os.environ.get("LOCAL_RANK", "0") == "0" else lambda _: None
        rendezvous.wait_for_name(os.environ["MASTER_ADDR"], say, timeout=rendezvous.timeout_from_environment())
    telemetry.track(tracked(job, work.sweep_number))
    telemetry.activity("loading torch")
    from dpo_trainer.training import leg, train

    # From here on a stop saves a checkpoint, at a step that all ranks agree on.
    run = train.run if sweep is None else partial(leg.run, sweep=sweep)
    ended = run(job, work, telemetry=telemetry, attempt=attempt, stop=stop_on_request())
    code = ExitCode.OK if ended.status == "Succeeded" else ExitCode.SIGTERM
    found = read_report(work) if sweep is not None else None
    return build_termination("train", attempt, code, ended.message).model_copy(update={"leg": found})


def _generate(job: DPOJob, work: WorkDir, telemetry: Telemetry, attempt: int) -> Termination:
    stop_by_exception()
    telemetry.activity("loading torch")
    _check_driver(job)
    telemetry.serve()
    from dpo_trainer.rounds import generate

    found = generate.run(job.spec, work, telemetry, generate.Share.from_environment())
    return build_termination("generate", attempt, ExitCode.OK).model_copy(update={"round": found})


def _export(job: DPOJob, work: WorkDir, telemetry: Telemetry, attempt: int) -> Termination:
    stop_by_exception()
    job, sweep = of_leg(job, work.sweep_number), job.spec.sweep
    telemetry.activity("exporting")
    telemetry.serve()
    access = None
    of_round = work.number > 0
    if (settings := job.spec.export.push) is not None and not of_round:
        from dpo_trainer.sources.access import from_environment

        own = None if is_registry(settings.to) else settings.credentials_secret_ref
        access = from_environment(job.spec.way_out, own)
        # Before the hub's client is imported, which reads its settings then.
        access.apply(work.root / ".cache")
    from dpo_trainer.checkpoint.trust import trust_from_environment
    from dpo_trainer.export import chosen
    from dpo_trainer.export import phase as export

    trust = trust_from_environment(required=job.spec.checkpoint.require_recorded_digest)

    def progress(text: str) -> None:
        telemetry.activity(text)
        telemetry.alive()

    leg = work
    if job.spec.iterative is None:
        path = export.run(job, work, progress=progress, trust=trust, target=work.of_sweep(0).export)
    elif of_round:
        path = export.run(chosen.of_round(job), work, progress=progress, trust=trust)
        return build_termination("export", attempt, ExitCode.OK, export_path=path)
    else:
        path, number = chosen.run(job, work, progress=progress, trust=trust)
        leg = work.round(number)
    pushed = None
    if settings is not None and access is not None:
        pushed = _push(settings, access, job.metadata.uid, work, path, progress)
    if sweep is not None:
        write_choice(sweep, work)
    progress("writing the report")
    _write_report(leg, telemetry, job)
    return build_termination("export", attempt, ExitCode.OK, export_path=path, pushed=pushed)


def _push(
    settings: Push, access: "Access", uid: str, work: WorkDir, path: str, progress: Callable[[str], None]
) -> PushReport:
    """Copy the export to the place that the job names. Raises TrainerError, which says that the export is there."""
    from dpo_trainer.export import hub_push, oci_push, push

    folder = work.root / path
    try:
        if is_registry(settings.to):
            pushed = oci_push.push_to_registry(settings, uid, folder, work.pushed.with_name("pushing.json"), progress)
        else:
            copy = push.push if hub_repository(settings.to) is None else hub_push.push_to_hub
            pushed = copy(settings, uid, folder, access, progress)
    except TrainerError as error:
        raise push.not_pushed(error, path, settings.to) from error
    commit(work.pushed, pushed.model_dump_json().encode())
    return pushed


def _write_report(work: WorkDir, telemetry: Telemetry, job: DPOJob) -> None:
    """Write the report to the volume. The model is already exported, so a failure is only a warning."""
    try:
        from dpo_trainer.commands import report
        from dpo_trainer.commands.run_log import read_run

        problem = report.write(read_run(work), work, job)
    except Exception as error:
        problem = f"The report could not be written: {classify(error)[1]}"
    if problem:
        telemetry.warning("NoReport", problem)


_PHASES: dict[names.Phase, Callable[[DPOJob, WorkDir, Telemetry, int], Termination]] = {
    "prepare": _prepare,
    "generate": _generate,
    "judge": judge_phase.run,
    "train": _train,
    "export": _export,
}


def _reported(work: WorkDir) -> WorkDir:
    """The training that a report is of: the newest round's where there are rounds."""
    trained = [number for number in work.rounds if work.round(number).metrics.is_file()]
    return work.round(trained[-1]) if trained else work


def _show(command: str, work: WorkDir, job_file: Path) -> int:
    """Run a command that only reads a work folder, or the files that a job names."""
    try:
        if command == "look":
            from dpo_trainer.commands import look

            for line in look.lines(read_job(job_file).spec, claims_folder()):
                print(line, flush=True)
        elif command == "report":
            from dpo_trainer.commands import report

            report.report(_reported(work))
        else:
            import_tokenizers_alone()
            from dpo_trainer.commands import preview

            print(*preview.lines(work), sep="\n")
    except BaseException as error:
        code, message = classify(error)
        print(f"{command}: {message}", file=sys.stderr, flush=True)
        return int(code)
    return int(ExitCode.OK)
