"""`dpo run`: the phases of a DPOJob as processes on this machine, in the same folder layout as a volume.

Each "node" is one launcher on the loopback interface, so that a job of two nodes runs as it would on a cluster.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.phases import FIRST, LAST, Step, following, is_asked
from dpo_operator.api.reports import RoundReport
from dpo_operator.api.sweep.grid import Sweep
from dpo_operator.api.sweep.report import best, none_trained, why_best
from dpo_operator.api.types import DPOJob
from dpo_operator.cli.attempts import PhaseAttempts, say_findings, say_legs, say_rounds
from dpo_operator.cli.localfolder import LocalRunError, document_of, legs_of, locked, write_job_file
from dpo_operator.cli.mirroring import LocalMirror
from dpo_operator.cli.parent import signal_at_parents_end
from dpo_operator.cli.processes import Processes, free_port, generate_python

# Phases whose failures follow the restart policy; the others run again with the command.
_RESTARTED = ("generate", "judge", "train")
# Of an export, written before the folder gets its name.
_PROVENANCE = "export/dpo_provenance.json"


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
    _processes: Processes = field(init=False)
    _mirror: LocalMirror | None = None
    _folder: str = ""

    def __post_init__(self) -> None:
        self._processes = Processes(self.work, self.job.spec, self.claims, self.metrics_port, self._look)

    def run(self) -> int:
        """All phases, with restarts by failurePolicy. Returns an exit code of the shared table.

        Raises LocalRunError when the work folder can't be used.
        """
        return self._in_work_folder(self._all_phases, "report")

    def preview(self) -> int:
        """Prepare, and print the dataset report and the first pairs as tokens. Returns and raises as run does."""
        return self._in_work_folder(lambda: self._prepare(mirror=False), "preview")

    def _in_work_folder(self, phases: Callable[[], int], show: str) -> int:
        """Run phases, then a command that shows what they made."""
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            with locked(self.work):
                write_job_file(self.work, self.job, self.uid)
                previous = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
                try:
                    code = phases()
                    if code == ExitCode.OK:
                        self._show(show)
                    self._say_findings()
                    return code
                finally:
                    for number, handler in previous.items():
                        signal.signal(number, handler)
        except OSError as error:
            raise LocalRunError(f"the work folder {self.work} can't be used: {error}") from error

    def _show(self, command: str) -> None:
        setup = signal_at_parents_end(signal.SIGTERM)
        argv, environment = self._processes.command(command), self._processes.environment(1)
        subprocess.run(argv, env=environment, check=False, preexec_fn=setup)

    def _say_findings(self) -> None:
        say_rounds(self.work, self.say)
        say_legs(self.work, self.say)
        say_findings(self.work, self.say)
        if self._folder:
            say_findings(self.work / self._folder, self.say)

    def _all_phases(self) -> int:
        generate_python(self.job.spec, os.environ)  # before anything is prepared
        code = self._prepare(mirror=True)
        step: Step | None = self._after_prepare()
        while code == ExitCode.OK and step is not None:
            code = self._run_step(step)
            if code == ExitCode.OK:
                step = self._after(step)
        return code

    def _prepare(self, *, mirror: bool) -> int:
        """mirror: whether prepare looks into the mirror where there is no checkpoint yet; a preview needs none."""
        self.say("prepare:")
        begun = (self.work / "checkpoints" / "attempt").exists() and self.restore != names.Restore.OTHERS
        restore = {names.ENV_RESTORE: self.restore.value} if mirror and not begun else {}
        return self._one_process(FIRST, restore)

    def _after_prepare(self) -> Step | None:
        """Where the run begins, or resumes: with the first round that is not exported, or the first leg that has not ended.

        What a phase of it has done already is not done again.
        """
        done = FIRST
        if self.job.spec.sweep is not None:
            ended = len(legs_of(self.work))
            return self._after(Step("train", leg=ended) if ended else FIRST)
        if self.job.spec.iterative is not None:
            while (self.work / names.round_folder(done.round + 1) / _PROVENANCE).is_file():
                done = Step("export", done.round + 1)
        return self._after(done)

    def _after(self, done: Step) -> Step | None:
        """What follows a step, by the report of its round where a judge has written one."""
        report = self._report_of(done)
        if report is None:
            return following(self.job.spec, done)
        return following(self.job.spec, done, report.ended, asked=is_asked(report))

    def _report_of(self, step: Step) -> RoundReport | None:
        if not step.round or step.phase not in ("judge", "export"):
            return None
        path = self.work / names.round_folder(step.round) / "round.json"
        try:
            return RoundReport.model_validate_json(path.read_bytes())
        except ValueError as error:
            raise LocalRunError(f"{path} is not the report of a round; judge that round again without it") from error

    def _run_step(self, step: Step) -> int:
        self._folder = step.folder
        self.say(f"{step.phase} of {step.whose}:" if step.whose else f"{step.phase}:")
        if step == LAST and self.job.spec.sweep is not None:
            return self._export_best(self.job.spec.sweep)
        if step.phase not in _RESTARTED:
            return self._one_process(step, {})
        if step.phase == "train" and self.job.spec.checkpoint.mirror is not None:
            return self._mirrored(step)
        return self._attempts(step)

    def _export_best(self, sweep: Sweep) -> int:
        """Export the best leg; without any the run ends as one that diagnosis stopped."""
        legs = legs_of(self.work)
        found = best(sweep.select, legs)
        if found is None:
            self.say(none_trained(legs))
            return ExitCode.STOPPED_BY_DIAGNOSIS
        self.say(f"leg {found.leg} is exported, {why_best(sweep.select, found)}: {found.settings}")
        self._folder = names.leg_folder(found.leg)
        return self._one_process(Step("export", leg=found.leg), {})

    def _one_process(self, step: Step, more: dict[str, str]) -> int:
        """Run prepare or an export. more: variables of it."""
        attempt = self._next_attempt(step) if step.round else 1
        environment = self._processes.environment(attempt, step=step) | more
        ending = self._processes.run([(self._processes.command(step.phase), environment)], step, attempt)
        if ending.code != ExitCode.OK:
            self.say(str(ending))
        return ending.code

    def _mirrored(self, step: Step) -> int:
        """Train, with copies of the checkpoints to the mirror."""
        command, environment = self._processes.command("mirror"), self._processes.environment(1)
        self._mirror = LocalMirror(self.work / "checkpoints", command, environment, self.say)
        try:
            code = self._attempts(step)
            self._mirror.finish()
            return code
        finally:
            self._mirror.stop()

    def _attempts(self, step: Step) -> int:
        """Run a phase. After a failure the operator's restart policy decides whether all of its processes start again."""
        attempts = PhaseAttempts(self.job.spec.failure_policy, step.phase, self._next_attempt(step))
        while True:
            attempt = attempts.current
            ending = self._processes.run(self._commands(step, attempt), step, attempt)
            if ending.code == ExitCode.OK:
                return ending.code
            self.say(str(ending))
            if self._processes.stopping:
                return ending.code
            decision = attempts.after_failure(ending)
            if decision.wait_seconds is None:
                if decision.message:
                    self.say(f"{decision.reason}: {decision.message}")
                return ending.code
            when = f" in {decision.wait_seconds:g} s" if decision.wait_seconds else ""
            self.say(f"{decision.reason}: attempt {attempts.current} {self._start(step)}{when}; {decision.message}")
            if not self._wait(decision.wait_seconds):
                return ending.code

    def _commands(self, step: Step, attempt: int) -> list[tuple[list[str], dict[str, str]]]:
        """The processes of a phase: a launcher for each node, or one judge."""
        here, port = self._processes, free_port()
        if step.phase == "judge":
            return [(here.command("judge"), here.environment(attempt, step=step))]
        nodes = range(self.job.spec.nodes)
        if step.phase == "generate":
            return [here.generator(attempt, node, port, step) for node in nodes]
        return [(here.command("launch"), here.environment(attempt, node, port, step)) for node in nodes]

    def _start(self, step: Step) -> str:
        """How the next attempt begins."""
        if step.phase != "train":
            return "goes on after what is done"
        committed = any((self.work / step.folder / "checkpoints").glob("step-????????"))
        return "resumes from the last committed checkpoint" if committed else "starts from the beginning"

    def _wait(self, seconds: float) -> bool:
        """Sleep; False when the user has stopped the run."""
        end = time.monotonic() + seconds
        while not self._processes.stopping and time.monotonic() < end:
            time.sleep(0.1)
        return not self._processes.stopping

    def _next_attempt(self, step: Step) -> int:
        """1 + the highest attempt in the fences and the termination files: an older writer can't commit after a newer one."""
        seen = [int(p.name.split("-")[2]) for p in self.work.glob(f"termination-{step.phase}-*-*.json")]
        fences = [
            self.work / "checkpoints" / "attempt",
            *self.work.glob("rounds/????/checkpoints/attempt"),
            *self.work.glob("legs/????/checkpoints/attempt"),
        ]
        for fence in fences if step.phase == "train" else ():
            if fence.is_file() and (text := fence.read_text().strip()).isdecimal():
                seen.append(int(text))
        return max(seen, default=0) + 1

    def _look(self) -> None:
        if self._mirror is not None:
            self._mirror.look()

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        if not self._processes.stopping:
            self.say("Stopping: the state is being saved. Run the same command again to resume.")
        self._processes.stopping = True
        self._processes.end()
        if self._mirror is not None:
            self._mirror.stop()


def look(job: DPOJob, claims: Path) -> int:
    """Print what the first rows of the job's local files are. Returns an exit code of the shared table."""
    with tempfile.TemporaryDirectory(prefix="dpo-") as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(document_of(job)), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "dpo_trainer", "look", "--job-file", str(path)],
            env=os.environ | {names.ENV_CLAIMS_DIR: str(claims)},
            check=False,
            preexec_fn=signal_at_parents_end(signal.SIGTERM),
        )
    return done.returncode
