"""`dpo run`: the phases of a DPOJob as processes on this machine, in the same folder layout as a volume.

Each "node" is one launcher on the loopback interface, so that a job of two nodes runs as it would on a cluster.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from dpo_operator.api import exitcodes, names
from dpo_operator.api.rules import resuming
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_operator.cli.attempts import Ending, TrainAttempts, say_findings
from dpo_operator.cli.mirroring import LocalMirror
from dpo_operator.cli.parent import signal_at_parents_end


class LocalRunError(Exception):
    """The run can't start or resume."""


@dataclass
class LocalRun:
    """One job in one work folder. A repeated run resumes.

    claims: folder whose subfolders stand for the claims of pvc:// sources.
    say: prints a line for the user. restore: what a run without checkpoints takes from its mirror. uid: of the run in a new folder.
    """

    job: DPOJob
    work: Path
    claims: Path
    metrics_port: int
    say: Callable[[str], None]
    restore: names.Restore = names.Restore.OWN
    uid: str | None = None
    _stopping: bool = False
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _mirror: LocalMirror | None = None

    def run(self) -> int:
        """Prepare, train with restarts by failurePolicy, export. Returns an exit code of the shared table.

        Raises LocalRunError when the work folder can't be used.
        """
        return self._in_work_folder(names.PHASES, "report")

    def preview(self) -> int:
        """Prepare, and print the dataset report and the first pairs as tokens. Returns and raises as run does."""
        return self._in_work_folder(names.PHASES[:1], "preview")

    def _in_work_folder(self, phases: Sequence[names.Phase], show: str) -> int:
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            with _locked(self.work):
                self._write_job_file()
                return self._phases(phases, show)
        except OSError as error:
            raise LocalRunError(f"the work folder {self.work} can't be used: {error}") from error

    def _phases(self, phases: Sequence[names.Phase], show: str) -> int:
        """Run phases, then a command that shows what they made."""
        previous = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            for phase in phases:
                self.say(f"{phase}:")
                code = self._train() if phase == "train" else self._one_process(phase, mirror="train" in phases)
                if code != exitcodes.ExitCode.OK:
                    say_findings(self.work, self.say)
                    return code
            subprocess.run(
                self._command(show),
                env=self._environment(1),
                check=False,
                preexec_fn=signal_at_parents_end(signal.SIGTERM),
            )
            say_findings(self.work, self.say)
            return exitcodes.ExitCode.OK
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _write_job_file(self) -> None:
        """Write job.json, and refuse a folder that holds another job's state."""
        path = self.work / "job.json"
        document = _document(self.job)
        if path.exists():
            earlier = _job_of(self.work)
            before, now = _without_defaults(earlier["spec"]), _without_defaults(document["spec"])
            if changed := resuming.changed(before, now):
                raise LocalRunError(
                    f"{self.work} holds a run with other settings ({', '.join(changed)}). "
                    "Use --fresh to start over in it, or --work-dir for another folder."
                )
            document["metadata"]["uid"] = earlier["metadata"]["uid"]
        elif any(self.work.iterdir()):
            # Otherwise a later --fresh would delete files that this command did not write.
            raise LocalRunError(
                f"{self.work} is not empty and is not a folder of `dpo run`; name a new or empty folder with --work-dir"
            )
        else:
            document["metadata"]["uid"] = self.uid or str(uuid.uuid4())
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=1))
        temporary.replace(path)

    def _one_process(self, phase: names.Phase, *, mirror: bool) -> int:
        """Run prepare or export. mirror: whether prepare looks into the mirror where there is no checkpoint yet; a preview needs none."""
        environment = self._environment(1)
        begun = (self.work / "checkpoints" / "attempt").exists() and self.restore != names.Restore.OTHERS
        if mirror and phase == "prepare" and not begun:
            environment[names.ENV_RESTORE] = self.restore
        ending = self._run_all([(self._command(phase), environment)], phase, attempt=1)
        if ending.code != exitcodes.ExitCode.OK:
            self.say(str(ending))
        return ending.code

    def _train(self) -> int:
        """Train, with copies of the checkpoints to the mirror."""
        if self.job.spec.checkpoint.mirror is None:
            return self._attempts()
        self._mirror = LocalMirror(self.work / "checkpoints", self._command("mirror"), self._environment(1), self.say)
        try:
            code = self._attempts()
            self._mirror.finish()
            return code
        finally:
            self._mirror.stop()

    def _attempts(self) -> int:
        """Train. After a failure the operator's restart policy decides whether all ranks start again."""
        attempts = TrainAttempts(self.job.spec.failure_policy, self._next_attempt())
        while True:
            attempt, port = attempts.current, _free_port()
            nodes = range(self.job.spec.nodes)
            launchers = [(self._command("launch"), self._environment(attempt, node, port)) for node in nodes]
            ending = self._run_all(launchers, "train", attempt)
            if ending.code == exitcodes.ExitCode.OK:
                return ending.code
            self.say(str(ending))
            if self._stopping:
                return ending.code
            decision = attempts.after_failure(ending)
            if decision.wait_seconds is None:
                if decision.message:
                    self.say(f"{decision.reason}: {decision.message}")
                return ending.code
            committed = any((self.work / "checkpoints").glob("step-????????"))
            start = "resumes from the last committed checkpoint" if committed else "starts from the beginning"
            when = f" in {decision.wait_seconds:g} s" if decision.wait_seconds else ""
            self.say(f"{decision.reason}: attempt {attempts.current} {start}{when}; {decision.message}")
            if not self._wait(decision.wait_seconds):
                return ending.code

    def _wait(self, seconds: float) -> bool:
        """Sleep; False when the user has stopped the run."""
        end = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < end:
            time.sleep(0.1)
        return not self._stopping

    def _next_attempt(self) -> int:
        """1 + the highest attempt in the fence and the termination files: an older writer can't commit after a newer one."""
        seen = [int(p.name.split("-")[2]) for p in self.work.glob("termination-train-*-*.json")]
        fence = self.work / "checkpoints" / "attempt"
        if fence.is_file() and (text := fence.read_text().strip()).isdecimal():
            seen.append(int(text))
        return max(seen, default=0) + 1

    def _run_all(self, commands: list[tuple[list[str], dict[str, str]]], phase: names.Phase, attempt: int) -> Ending:
        """Run processes until all have ended; the first failure ends the others and is the result."""
        # Without this process nobody can stop them; SIGTERM makes a training save its state first, as Ctrl-C does.
        setup = signal_at_parents_end(signal.SIGTERM)
        self._processes = [
            subprocess.Popen(argv, env=env, start_new_session=True, preexec_fn=setup) for argv, env in commands
        ]
        first = 0
        if self._stopping:  # the signal came between two phases
            self._end_all()
        while any(p.poll() is None for p in self._processes):
            failed = next((p.returncode for p in self._processes if p.returncode), 0)
            if failed and not first:
                first = failed
                # Peers usually exit by themselves with a message; SIGTERM is for those that don't.
                deadline = time.monotonic() + 20
            if first and time.monotonic() > deadline:
                self._end_all()
                deadline = time.monotonic() + 60
            if self._mirror is not None:
                self._mirror.look()
            time.sleep(0.1)
        codes = [128 - p.returncode if p.returncode < 0 else p.returncode for p in self._processes if p.returncode]
        self._processes = []
        if not codes:
            return Ending(phase, attempt)
        least = min(exitcodes.echo(code) for code in codes)
        primary = [code for code in codes if exitcodes.echo(code) == least]
        code = 128 - first if first < 0 else first
        return Ending.read(self.work, phase, attempt, code if code in primary else primary[0])

    def _command(self, subcommand: str) -> list[str]:
        return [
            sys.executable, "-m", "dpo_trainer", subcommand,
            "--job-file", str(self.work / "job.json"), "--work-dir", str(self.work),
        ]  # fmt: skip

    def _environment(self, attempt: int, node: int = 0, port: int = names.MASTER_PORT) -> dict[str, str]:
        """The variables that the operator would set, for one launcher."""
        spec = self.job.spec
        environment = dict(os.environ)
        environment.update(
            {
                names.ENV_JOB_FILE: str(self.work / "job.json"),
                names.ENV_WORK_DIR: str(self.work),
                names.ENV_ATTEMPT: str(attempt),
                # Only the first launcher has rank 0, whose metrics count; the others take any free port.
                names.ENV_METRICS_PORT: str(self.metrics_port if node == 0 else 0),
                names.ENV_CLAIMS_DIR: str(self.claims),
                "DPO_BIND_ADDRESS": "127.0.0.1",
                "PET_NNODES": str(spec.nodes),
                "PET_NPROC_PER_NODE": str(spec.processes_per_node),
                "PET_NODE_RANK": str(node),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
            }
        )
        environment.pop(names.ENV_TERMINATION_LOG, None)
        environment.update({variable.name: variable.value for variable in spec.pod.env})
        if spec.nodes > 1 and spec.gpus_per_node and "CUDA_VISIBLE_DEVICES" not in os.environ and _gpus():
            # Each "node" of this machine gets its own GPUs.
            mine = range(node * spec.gpus_per_node, (node + 1) * spec.gpus_per_node)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in mine)
        return environment

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        if not self._stopping:
            self.say("Stopping: the state is being saved. Run the same command again to resume.")
        self._stopping = True
        self._end_all()

    def _end_all(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        if self._stopping and self._mirror is not None:
            self._mirror.stop()


def look(job: DPOJob, claims: Path) -> int:
    """Print what the first rows of the job's local files are. Returns an exit code of the shared table."""
    with tempfile.TemporaryDirectory(prefix="dpo-") as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(_document(job)), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "dpo_trainer", "look", "--job-file", str(path)],
            env=os.environ | {names.ENV_CLAIMS_DIR: str(claims)},
            check=False,
            preexec_fn=signal_at_parents_end(signal.SIGTERM),
        )
    return done.returncode


def _document(job: DPOJob) -> dict[str, Any]:
    """A job file's content."""
    return job.model_dump(mode="json", by_alias=True, exclude_none=True)


def remove(work: Path) -> str | None:
    """Delete a work folder that `dpo run` made; refuse any other folder, and one in use. Returns the UID of its run, which owns its mirror."""
    try:
        if not work.exists() or (work.is_dir() and not any(work.iterdir())):
            return None
        if not (work / "job.json").is_file():
            raise LocalRunError(f"{work} is not a folder of `dpo run` (it has no job.json); nothing was removed")
        uid = _job_of(work)["metadata"].get("uid")
        with _locked(work):
            shutil.rmtree(work)
        return uid if isinstance(uid, str) else None
    except OSError as error:
        raise LocalRunError(f"{work} can't be removed: {error}") from error


def _without_defaults(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec without default values, so that a new setting's default equals its absence in an earlier version's spec."""
    try:
        return DPOJobSpec.model_validate(spec).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    except ValidationError:
        return spec  # written by a version with other settings


def _job_of(work: Path) -> dict[str, Any]:
    """The job file of an earlier run. Raises LocalRunError when it is another kind of file."""
    path = work / "job.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        document = None
    parts = (document.get("spec"), document.get("metadata")) if isinstance(document, dict) else (None,)
    if not all(isinstance(part, dict) for part in parts) or document.get("kind") != names.KIND:
        raise LocalRunError(f"{path} is not the job file of a run; use another folder (--work-dir)")
    found: dict[str, Any] = document
    return found


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Keep a second `dpo run` out of a folder: the two would end each other's ranks and mix their metrics.

    Raises LocalRunError. Some network file systems have no locks for folders; there it does nothing.
    """
    folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalRunError(f"another `dpo run` is at work in {work}; wait for it, or stop it") from error
        except OSError:
            pass
        yield
    finally:
        os.close(folder)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _gpus() -> int:
    """NVIDIA GPUs of this machine, counted without CUDA."""
    return len([p for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit()])
