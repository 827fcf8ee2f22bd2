"""The parent of the prepare phase: ends it when it hangs in others' input, and leaves its last words when it was killed.

A process of its own, because code of libraries can hold Python's lock for ever or end the process; see runtime/untrusted.py.
"""

import os
import signal
import time
from collections.abc import Callable

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.launch.supervisor import exit_code
from dpo_trainer.runtime.parent import end_with_parent
from dpo_trainer.runtime.untrusted import Board, Late, watched_by

# How often the time is looked at, and how long a killed process may take to end, in seconds. It takes longer when a volume hangs.
POLL_SECONDS = 1.0
END_SECONDS = 10.0
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def run(phase: Callable[[], int], last_words: Callable[[int, str], int]) -> int:
    """Run a phase in a child and return its exit code, in both processes. Call it before threads start.

    last_words: called in the parent when the child left none, with an exit code and a message; returns the exit code.
    """
    board, parent = Board(), os.getpid()
    awaited = {signal.SIGCHLD, *_FORWARDED}
    held = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    child = os.fork()
    if child == 0:
        # A group of its own: Ctrl-C reaches it once, from the parent.
        os.setpgid(0, 0)
        end_with_parent(parent, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        watched_by(board)
        return phase()
    try:
        code, message = _watch(child, board, awaited)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return last_words(code, message) if message else code


def _watch(child: int, board: Board, awaited: set[signal.Signals]) -> tuple[int, str]:
    """Exit code of the child, and a message if it left none."""
    killed_at: float | None = None
    late: Late | None = None
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            break
        if killed_at is not None and time.monotonic() > killed_at + END_SECONDS:
            code = -signal.SIGKILL
            break
        got = signal.sigtimedwait(awaited, POLL_SECONDS)
        if got is not None and got.si_signo in _FORWARDED:
            os.kill(child, got.si_signo)
        entry = board.read()
        if killed_at is None and entry.deadline and time.monotonic() > entry.deadline:
            late, killed_at = entry, time.monotonic()
            os.kill(child, signal.SIGUSR1)  # where it hangs, into the log
            time.sleep(POLL_SECONDS)
            os.kill(child, signal.SIGKILL)
    if late is not None and code == -signal.SIGKILL:
        return late.code, f"{late.what} took too long and was stopped; correct or leave out what it reads"
    return _ending(code, board.read())


def _ending(code: int, at: Late) -> tuple[int, str]:
    """Exit code and message of a child that was not stopped here. code: negative for a signal."""
    if code >= 0 or code == -signal.SIGTERM:
        return exit_code(code), ""
    name = signal.Signals(-code).name
    if not at.deadline:
        return exit_code(code), f"The process was ended by {name}."
    if code == -signal.SIGKILL:
        return exit_code(
            code
        ), f"Killed while {at.what}, probably out of memory; raise pod.prepareResources.limits.memory"
    return ExitCode.INVALID_CONFIGURATION, (
        f"{at.what} ended the process by {name}: a library crashed, or had too little memory; correct or leave out what it reads, or "
        "raise pod.prepareResources.limits.memory"
    )
