"""How a phase of `dpo run` ended, what it found, and restarts, decided by the operator's restart policy on a status in memory."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dpo_operator.api import conditions, exitcodes
from dpo_operator.api.failurepolicy import FailurePolicy
from dpo_operator.api.names import Phase
from dpo_operator.api.reports import Termination
from dpo_operator.api.status import Attempts, DPOJobStatus
from dpo_operator.api.text import shown
from dpo_operator.cli.localcase import diagnosed, rounds_of
from dpo_operator.cli.localfolder import leg_statuses
from dpo_operator.explain.legs import leg_figures
from dpo_operator.explain.rounds import round_figures
from dpo_operator.planning import failures, restarts
from dpo_operator.planning.failures import Failure
from dpo_operator.planning.objects import ChildPod, Exit
from dpo_operator.planning.transitions import Moment

# The trainer's message is cut here, so that the status keeps the whole of what the policy adds to it.
MAX_TRAINER_MESSAGE = 1000
TAIL_BYTES = 65536


@dataclass(frozen=True)
class Ending:
    """How the processes of one attempt ended.

    code: exit code of the primary failure, 0 on success. reported: whether the trainer has printed why.
    text: the termination message that belongs to the code, JSON; empty without one. step: finished optimizer steps.
    """

    phase: Phase
    attempt: int
    code: int = 0
    reported: bool = False
    text: str = ""
    step: int = 0

    def __str__(self) -> str:
        row = exitcodes.info(self.code)
        meaning = "" if self.reported else f": {row.meaning}"
        return f"{self.phase} ended with {row.reason} (exit code {self.code}){meaning}"

    @classmethod
    def read(cls, work: Path, phase: Phase, attempt: int, code: int, leg: str = "") -> "Ending":
        """The ending with this exit code, completed from what the trainer left in its work folder. leg: folder of the round in it."""
        paths = sorted(work.glob(f"termination-{phase}-{attempt}-*.json"))
        found = [(text, words) for text in map(_text, paths) if (words := Termination.from_text(text)) is not None]
        own = [(text, words) for text, words in found if words.exit_code == code]
        text, termination = max(own, key=lambda each: bool(each[1].message), default=("", None))
        steps = [words.progress.step for _, words in found if words.progress]
        # A process that was killed leaves no message.
        steps += [_logged_step(work / leg)] if phase == "train" else []
        reported = termination is not None and bool(termination.message)
        return cls(phase, attempt, code, reported, text, max(steps, default=0))


@dataclass(frozen=True)
class Decision:
    """What follows a failure. wait_seconds: until the next attempt; None: there is none.

    reason, message: CamelCase and a sentence for the user; the message is empty when the exit code says it all.
    """

    reason: str
    message: str
    wait_seconds: float | None


class PhaseAttempts:
    """Attempts of a phase in one `dpo run`. first: number of the first one."""

    def __init__(self, policy: FailurePolicy, phase: Phase, first: int) -> None:
        self._policy = policy
        self._status = DPOJobStatus(phase=phase, attempts=Attempts().model_copy(update={phase: first}))

    @property
    def current(self) -> int:
        """Number of the current attempt."""
        return self._status.attempt

    def after_failure(self, ending: Ending) -> Decision:
        """Count a failure and decide whether there is another attempt, which is then the current one."""
        at = Moment(datetime.now(UTC).replace(microsecond=0), generation=1)
        failure = _failure(ending)
        self._status = restarts.after_failure(self._status, failure, self._policy, at).status
        failed = conditions.find(self._status.conditions, conditions.FAILED)
        if failed is not None:
            return Decision(failed.reason, failed.message.removeprefix(failure.message).strip(), None)
        not_before = self._status.not_before
        wait = (not_before - at.now).total_seconds() if not_before else 0.0
        counting = "counts" if self._status.restart_history[-1].counting == "Counted" else "does not count"
        return Decision(failure.reason, f"this {counting} against failurePolicy.maxRestarts", wait)


def _failure(ending: Ending) -> Failure:
    """The failure in the operator's terms: that of a pod whose container ended in the same way."""
    pod = ChildPod(
        name="",
        uid="",
        phase=ending.phase,
        attempt=ending.attempt,
        deleting=False,
        exit=Exit(ending.code, reason="", finished_at="", text=ending.text),
    )
    found = failures.classify(pod)
    assert found is not None, "an attempt that succeeded has no failure"
    termination = Termination.from_text(ending.text)
    said = f"{ending}: {termination.message}" if termination and ending.reported else str(ending)
    message = shown(said.rstrip(" ."), MAX_TRAINER_MESSAGE) + "."
    failure = replace(found, step=ending.step, message=message)
    if ending.code == exitcodes.ExitCode.NO_ACCELERATOR:
        # A pod may find its GPU on another node; here there is no other.
        return replace(failure, failure_class="configuration")
    return failure


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _logged_step(work: Path) -> int:
    """Last step in metrics.jsonl, which an attempt cuts to the step that it resumes from; 0 without one."""
    try:
        with (work / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(step, int):
            return step
    return 0


def say_findings(work: Path, say: Callable[[str], None]) -> None:
    """Say what diagnosis.json has about the run's learning, worst first; nothing without one."""
    # There is none when a phase ended before the first look.
    for finding in diagnosed(work) or ():
        say(f"{finding.severity}: {finding.code}: {finding.sentence}")


def say_rounds(work: Path, say: Callable[[str], None]) -> None:
    """Say what the rounds have brought; nothing without rounds."""
    for each in rounds_of(work):
        say(f"round {each.round}: {round_figures(each)}")


def say_legs(folder: Path, say: Callable[[str], None]) -> None:
    """Say what the legs of a sweep have brought; nothing without any."""
    for each in leg_statuses(folder):
        say(f"leg {each.leg} ({each.settings}): {leg_figures(each)}")
