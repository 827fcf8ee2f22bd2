"""What every phase reads from its process: the job file, the attempt number, the hub token, and stop signals."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from dpo_operator.api import names
from dpo_operator.api.access import PUBLIC_CREDENTIALS
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.rules import spec as rules
from dpo_operator.api.rules import support
from dpo_operator.api.sweep.grid import leg_spec
from dpo_operator.api.types import DPOJob
from dpo_trainer.runtime.errors import TrainerError, input_not_found, invalid_configuration
from dpo_trainer.runtime.registry_keys import passwords
from dpo_trainer.runtime.stop import Stopped, StopRequest
from dpo_trainer.runtime.workdir import WorkDir


def read_job(path: Path, *, begun: bool = False, digest: str | None = None) -> DPOJob:
    """Read and validate the job file: types, rules, and the features of this version.

    begun: the job has run before. A violation of a rule is then only printed, because the image may be newer than the job.
    digest: SHA-256 of the operator's file, hex; another file is refused. Raises TrainerError or pydantic's ValidationError.
    """
    try:
        content = path.read_bytes()
        document = json.loads(content)
    except OSError as error:
        raise input_not_found(f"{path}: the job file can't be read: {error.strerror}") from error
    except ValueError as error:
        raise invalid_configuration(f"{path}: expected a DPOJob as JSON, found {error}") from error
    if digest is not None and (found := hashlib.sha256(content).hexdigest()) != digest:
        raise invalid_configuration(
            f"{path}: expected the job file with the SHA-256 {digest} that the operator wrote, found {found}. Somebody put another "
            "ConfigMap in its place; delete that ConfigMap and retry the job."
        )
    job = DPOJob.model_validate(document)
    if (broken := rules.violations(job)) and begun:
        print(f"newer rules would refuse this job: {'; '.join(broken)}", file=sys.stderr, flush=True)
    elif broken:
        raise invalid_configuration("\n".join(broken))
    if missing := support.unsupported(job.spec):
        raise TrainerError(ExitCode.UNSUPPORTED, "\n".join(missing))
    return job


def attempt_from_environment() -> int:
    """Number of this attempt, from 1. Raises TrainerError for anything else in the environment variable."""
    text = os.environ.get(names.ENV_ATTEMPT, "1")
    if not text.isdecimal() or int(text) < 1:
        raise invalid_configuration(f"{names.ENV_ATTEMPT}: expected a number from 1, found {text!r}")
    return int(text)


def leg_from_environment(work: WorkDir) -> WorkDir:
    """The folder of the round, or of the sweep's leg, that this process works on; the job's own without one.

    Raises TrainerError for anything else than numbers in the environment variables, and for both.
    """
    number, leg = (_number(variable) for variable in (names.ENV_ROUND, names.ENV_LEG))
    if number and leg:
        raise invalid_configuration(f"{names.ENV_ROUND}={number}, {names.ENV_LEG}={leg}: expected one of them at most")
    return work.of_sweep(leg) if leg else work.round(number)


def _number(variable: str) -> int:
    text = os.environ.get(variable, "0")
    if not text.isdecimal():
        raise invalid_configuration(f"{variable}: expected a number, found {text!r}")
    return int(text)


def of_leg(job: DPOJob, number: int) -> DPOJob:
    """The job as a leg of its sweep sees it: with the leg's values. number: 0 in jobs without a sweep. Raises TrainerError when there is no such leg."""
    if job.spec.sweep is not None and not number:
        raise invalid_configuration(f"{names.ENV_LEG}: expected the number of a leg of spec.sweep, found none")
    try:
        return job.model_copy(update={"spec": leg_spec(job.spec, number)})
    except IndexError as error:
        raise invalid_configuration(f"{names.ENV_LEG}: expected a leg of spec.sweep, found {error}") from error


def tracked(job: DPOJob, leg: int) -> DPOJob:
    """The job as experiment trackers know it: each leg of a sweep has curves of its own. leg: 0 for none."""
    if not leg:
        return job
    metadata = job.metadata.model_copy(update={"name": f"{job.metadata.name}-leg-{leg}"})
    return job.model_copy(update={"metadata": metadata})


def stop_by_exception() -> None:
    """Raise Stopped on SIGTERM and SIGINT, for phases that have no state to save."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


def stop_on_request() -> StopRequest:
    """Set a flag on SIGTERM and SIGINT, which the training loop polls."""
    stop = StopRequest()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop.signal_name = signal.Signals(number).name

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop


def hub_token() -> str | None:
    """The hub token; None without one. Read from a mounted file, because an environment variable is visible in more places."""
    path = Path(os.environ.get(names.ENV_TOKEN_FILE, names.TOKEN_FILE))
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError:
        token = ""
    return token or credentials().get("HF_TOKEN")


def judge_key() -> str | None:
    """The API key of the endpoint that judges; None without one."""
    try:
        key = Path(os.environ.get(names.ENV_JUDGE_KEY_FILE, names.JUDGE_KEY_FILE)).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return key or None


def claims_folder() -> Path:
    """Folder in which claims are mounted by name."""
    return Path(os.environ.get(names.ENV_CLAIMS_DIR, names.CLAIMS_DIR))


def credentials_folder() -> Path:
    """Where the keys of object stores are mounted, a file for each."""
    return Path(os.environ.get(names.ENV_CREDENTIALS_DIR, names.CREDENTIALS_DIR))


def mirror_credentials_folder() -> Path:
    """Where those of a mirror are mounted that has keys of its own."""
    return Path(os.environ.get(names.ENV_MIRROR_CREDENTIALS_DIR, names.MIRROR_CREDENTIALS_DIR))


def credentials(folder: Path | None = None) -> dict[str, str]:
    """Keys of object stores by their names, without white space at their ends; empty when none are mounted. folder: None for the usual one."""
    try:
        # Kubernetes puts links into the folder, and what they lead to beside them under names with a dot.
        files = [
            file
            for file in (folder or credentials_folder()).iterdir()
            if not file.name.startswith(".") and file.is_file()
        ]
        found = {file.name: file.read_text(encoding="utf-8", errors="replace").strip() for file in sorted(files)}
    except OSError:
        return {}
    return {name: value for name, value in found.items() if value}


def secrets() -> list[str]:
    """Texts that must not appear in messages."""
    # A shorter value is no key, and messages without it could not be read.
    mounted = [*credentials().items(), *credentials(mirror_credentials_folder()).items()]
    keys = [value for name, value in mounted if name not in PUBLIC_CREDENTIALS and len(value) >= 8]
    return [*keys, *passwords(), *(key for key in (hub_token(), judge_key()) if key)]
