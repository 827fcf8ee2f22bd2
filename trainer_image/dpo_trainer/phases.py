"""What every phase shares: read the job, do the work, leave the last words, return the exit code."""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from dpo_operator.api import names, rules, support
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import DatasetReport, Termination
from dpo_operator.api.types import DPOJob
from dpo_trainer import outcome, rendezvous
from dpo_trainer.errors import TrainerError, input_not_found, invalid_configuration
from dpo_trainer.quiet import quiet_libraries
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.workdir import WorkDir

_LOCAL = (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))


def run(command: str, job_file: Path, work_dir: Path) -> int:
    """Run prepare, train, export, report or preview. Never raises an Exception: it becomes an exit code and a message."""
    work = WorkDir(work_dir)
    if command in ("report", "preview"):
        return _show(command, work)
    quiet_libraries()
    phase: names.Phase = command  # type: ignore[assignment]
    rank = int(os.environ.get("RANK", "0"))
    telemetry: Telemetry | None = None
    attempt = 1
    try:
        attempt = attempt_from_environment()
        job = read_job(job_file, begun=phase != "prepare")
        telemetry = Telemetry(
            phase,
            attempt,
            work,
            rank=rank,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
        )
        words = {"prepare": _prepare, "train": _train, "export": _export}[phase](job, work, telemetry, attempt)
    except (Exception, outcome.Stopped, KeyboardInterrupt) as error:
        code, message = outcome.classify(error)
        if code == ExitCode.INTERNAL_ERROR:
            traceback.print_exc()
        words = outcome.termination(phase, attempt, code, outcome.redact(message, _secrets()))
        _say(words)
    else:
        if words.exit_code and rank == 0:  # a stop, which all ranks agreed on
            _say(words)
    words = words.model_copy(update={"rank": rank, "progress": telemetry.progress if telemetry else None})
    if telemetry is not None:
        telemetry.close(words.exit_code)
    path = outcome.termination_log(work.root, phase, attempt)
    local_rank, local_world_size = (int(os.environ.get(name, alone)) for name, alone in _LOCAL)
    if outcome.may_write(path, words, local_rank=local_rank, local_world_size=local_world_size):
        outcome.write_termination(path, words)
    return words.exit_code


def _say(words: Termination) -> None:
    print(f"{words.phase}: {words.reason}: {words.message}", file=sys.stderr, flush=True)


def read_job(path: Path, *, begun: bool = False) -> DPOJob:
    """The job file, checked by the types, the rules and what this version can do.

    begun: an earlier attempt got through this. A rule that a later version of the image has must not end it half way.
    Raises TrainerError or pydantic's ValidationError.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise input_not_found(f"{path}: the job file can't be read: {error.strerror}") from error
    except ValueError as error:
        raise invalid_configuration(f"{path}: expected a DPOJob as JSON, found {error}") from error
    job = DPOJob.model_validate(document)
    if (broken := rules.violations(job)) and begun:
        print(f"newer rules would refuse this job: {'; '.join(broken)}", file=sys.stderr, flush=True)
    elif broken:
        raise invalid_configuration("\n".join(broken))
    if missing := support.unsupported(job.spec):
        raise TrainerError(ExitCode.UNSUPPORTED, "\n".join(missing))
    return job


def attempt_from_environment() -> int:
    """Number of this attempt, from 1. Raises TrainerError."""
    text = os.environ.get(names.ENV_ATTEMPT, "1")
    if not text.isdecimal() or int(text) < 1:
        raise invalid_configuration(f"{names.ENV_ATTEMPT}: expected a number from 1, found {text!r}")
    return int(text)


def _prepare(job: DPOJob, work: WorkDir, telemetry: Telemetry, attempt: int) -> Termination:
    _stop_by_exception()
    telemetry.activity("preparing model and data")
    telemetry.serve()
    from dpo_trainer import prepare

    claims = Path(os.environ.get(names.ENV_CLAIMS_DIR, names.CLAIMS_DIR))

    def progress(text: str, share: float) -> None:
        telemetry.activity(f"{text} ({share:.0%})")
        telemetry.alive()

    cache = os.environ.get(names.ENV_CACHE_DIR)
    found: DatasetReport = prepare.run(
        job, work, claims=claims, token=_token(), progress=progress, cache=Path(cache) if cache else None
    )
    if work.data_report.is_file():
        for text in json.loads(work.data_report.read_text(encoding="utf-8"))["warnings"]:
            telemetry.warning("Dataset", text)
    return outcome.termination("prepare", attempt, ExitCode.OK, dataset=found)


def _train(job: DPOJob, work: WorkDir, telemetry: Telemetry, attempt: int) -> Termination:
    _stop_by_exception()
    telemetry.activity("starting")
    telemetry.serve()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        say = telemetry.activity if os.environ.get("LOCAL_RANK", "0") == "0" else lambda _: None
        rendezvous.wait_for_name(os.environ["MASTER_ADDR"], say, timeout=rendezvous.timeout_from_environment())
    telemetry.track(job)
    telemetry.activity("loading torch")
    from dpo_trainer import train

    # From here on there is something to save, at a step that all ranks agree on.
    ended = train.run(job, work, telemetry=telemetry, attempt=attempt, stop=stop_on_request())
    code = ExitCode.OK if ended.status == "Succeeded" else ExitCode.SIGTERM
    return outcome.termination("train", attempt, code, ended.message)


def _export(job: DPOJob, work: WorkDir, telemetry: Telemetry, attempt: int) -> Termination:
    _stop_by_exception()
    telemetry.activity("exporting")
    telemetry.serve()
    from dpo_trainer import export
    from dpo_trainer.checkpoint.trust import trust_from_environment

    trust = trust_from_environment(required=job.spec.checkpoint.require_recorded_digest)

    def progress(text: str) -> None:
        telemetry.activity(text)
        telemetry.alive()

    path = export.run(job, work, progress=progress, trust=trust)
    progress("writing the report")
    _write_report(work, telemetry)
    return outcome.termination("export", attempt, ExitCode.OK, export_path=path)


def _write_report(work: WorkDir, telemetry: Telemetry) -> None:
    """Leave the report on the volume. The model is already exported, so a report that fails is only a warning."""
    try:
        from dpo_trainer import report, runlog

        without = report.write(runlog.read_run(work), work)
    except Exception as error:
        without = f"The report could not be written: {outcome.classify(error)[1]}"
    if without:
        telemetry.warning("NoReport", without)


def _show(command: str, work: WorkDir) -> int:
    """The commands that only read a work folder."""
    try:
        if command == "report":
            from dpo_trainer import report

            report.report(work)
        else:
            from dpo_trainer import preview

            print(*preview.lines(work), sep="\n")
    except Exception as error:
        code, message = outcome.classify(error)
        print(f"{command}: {message}", file=sys.stderr, flush=True)
        return int(code)
    return int(ExitCode.OK)


def _stop_by_exception() -> None:
    """SIGTERM and SIGINT end a phase that writes nothing in place, and its last words say so."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise outcome.Stopped(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def stop_on_request() -> outcome.StopRequest:
    """SIGTERM and SIGINT only leave word; the loop asks for it."""
    stop = outcome.StopRequest()

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.signal_name = signal.Signals(number).name

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return stop


def _token() -> str | None:
    """The hub token, from a mounted file alone: an environment variable would show in more places."""
    path = Path(os.environ.get(names.ENV_TOKEN_FILE, names.TOKEN_FILE))
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _secrets() -> list[str]:
    token = _token()
    return [token] if token else []
