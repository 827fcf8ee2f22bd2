"""Logs of all ranks of a job, each line with its pod, over all attempts that follow."""

import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.status import FINAL_STATES, DPOJobStatus
from dpo_operator.api.text import REPLACEMENT
from dpo_operator.cli.kubectl import ClusterError, Kubectl, NoAnswerError, Patience, not_started, of_job, refused
from dpo_operator.explain.case import Pod, status_of

WAIT_SECONDS = 2.0
Say = Callable[[str], None]


def show(kubectl: Kubectl, name: str, *, follow: bool, previous: bool, say: Say, note: Say) -> None:
    """Print the logs of the current attempt, or of the one before. follow: until the job ends, with attempts that begin meanwhile.

    say: prints a line of a log. note: prints what is not from a log. Raises ClusterError.
    """
    shown: set[tuple[str, int]] = set()
    since: dict[tuple[str, int], str] = {}
    headed: set[tuple[str, int]] = set()
    noted, patience = "", Patience(note)
    while True:
        try:
            job = kubectl.job(name)
            status = status_of(job)
            ended = not follow or previous or status.state in FINAL_STATES
            which = _attempt(status, previous)
            if which not in shown:
                pods = _pods(kubectl, job, which)
                started = [pod for pod in pods if pod.pod_phase != "Pending"]
                if started and (ended or len(started) == len(pods)):
                    if which not in headed:
                        note(f"{which[0]}, attempt {which[1]}:")
                        headed.add(which)
                    _stream(kubectl, job, which, started, say, follow=follow, since=since.get(which))
                    patience.answered()
                    since[which] = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
                    # A stream that breaks is read on from where it broke.
                    if ended or not any(_runs(pod) for pod in _pods(kubectl, job, which)):
                        shown.add(which)
                    continue
                if ended:
                    raise ClusterError(_why_none(name, status, which))
                if (why := status.message or "no operator has looked at the job yet") != noted:
                    note(f"waiting: {why}")
                    noted = why
            elif ended:
                return
        except NoAnswerError as error:
            patience.failed(error)
        else:
            patience.answered()
        time.sleep(WAIT_SECONDS)


def _attempt(status: DPOJobStatus, previous: bool) -> tuple[str, int]:
    """Phase and number of the attempt that is asked for."""
    phase: names.Phase = status.phase or "prepare"
    number = status.attempts.of(phase) - (1 if previous else 0)
    if number < 1 and previous:
        # Jobs without rounds have no attempt of generate and judge.
        earlier = [each for each in names.PHASES[: names.PHASES.index(phase)] if status.attempts.of(each)]
        phase = earlier[-1] if earlier else phase
        number = status.attempts.of(phase)
    return phase, max(number, 1)


def _why_none(name: str, status: DPOJobStatus, which: tuple[str, int]) -> str:
    phase, attempt = which
    message = f" ({status.message})" if status.message else ""
    return (
        f"no pod of {phase} attempt {attempt} has a log: it has not started, or its pods were deleted, and their logs with them{message}; "
        f"kubectl dpo why {name} has the last words that the operator kept"
    )


def _pods(kubectl: Kubectl, job: dict[str, Any], which: tuple[str, int]) -> list[Pod]:
    raw = kubectl.items("pods", of_job(job, which))
    return sorted((Pod.from_raw(each) for each in raw), key=lambda pod: pod.index)


def _runs(pod: Pod) -> bool:
    return pod.pod_phase == "Running" and pod.exit_code is None


def _stream(
    kubectl: Kubectl,
    job: dict[str, Any],
    which: tuple[str, int],
    pods: list[Pod],
    say: Say,
    *,
    follow: bool,
    since: str | None,
) -> None:
    """Print the logs of the pods of an attempt. Raises ClusterError if kubectl ends with an error before the first line."""
    prefix = {pod.name: f"{pod.phase} {pod.index} | " for pod in pods}
    arguments = [
        "logs", of_job(job, which), f"--container={names.CONTAINER}", "--prefix", "--tail=-1",
        f"--max-log-requests={max(len(pods), 1)}",
    ]  # fmt: skip
    arguments += ["--follow"] if follow else []
    arguments += [f"--since-time={since}"] if since is not None else []
    argv = kubectl.argv(*arguments)
    # Not a pipe: kubectl would stop at a full one, which nobody reads while there are logs.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        try:
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=said, text=True, errors="replace")
        except OSError as error:
            raise not_started(error) from error
        assert process.stdout is not None
        some = False
        try:
            for line in process.stdout:
                some = True
                say(_line(line.rstrip("\n"), prefix))
            if process.wait() != 0 and not some:
                said.seek(0)
                raise refused(said.read(), process.returncode)
        finally:
            process.kill()
            process.wait()


def _line(line: str, prefix: dict[str, str]) -> str:
    """A line with its pod's phase and number in place of kubectl's prefix, and without what moves the cursor."""
    head, bracket, text = line.partition("] ")
    pod = head.removeprefix("[pod/").partition("/")[0]
    if not bracket or pod not in prefix:
        pod, text = "", line
    return prefix.get(pod, "") + "".join(c if c.isprintable() or c == "\t" else REPLACEMENT for c in text)
