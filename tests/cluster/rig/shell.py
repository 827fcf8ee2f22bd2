"""Running commands, waiting, and telling the person who waits what is going on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dpo_operator.cli.parent import signal_at_parents_end

Answer = TypeVar("Answer")

STARTED = time.monotonic()
HEARTBEAT_SECONDS = 30.0
TAIL_CHARACTERS = 4000


class RigError(Exception):
    """Something the rig needed did not work; the message says what, with the end of the command's output."""


def say(message: str) -> None:
    """One progress line on stderr, so that stdout stays usable by scripts."""
    print(f"[{time.monotonic() - STARTED:7.1f}s] {message}", file=sys.stderr, flush=True)


class FatalError(RigError):
    """An error that waiting does not mend."""


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Announce a step and how long it took, with a sign of life every half minute while it runs."""
    begun = time.monotonic()
    finished = threading.Event()

    def heartbeat() -> None:
        while not finished.wait(HEARTBEAT_SECONDS):
            say(f"{what}: still at it after {time.monotonic() - begun:.0f}s")

    say(f"{what} …")
    thread = threading.Thread(target=heartbeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
    say(f"{what}: done in {time.monotonic() - begun:.1f}s")


def search_path() -> str:
    """PATH with the folders of the administrator's commands, which a shell that became root may lack."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of every command."""
    return {**os.environ, "PATH": search_path(), **(more or {})}


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> str:
    """Run a command to its end and return its stdout; anything but exit status 0 is a RigError."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=cwd,
            env=environment(env),
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise RigError(
            f"{words[0]}: no such command; `python -m tests.cluster.rig build` installs what is needed"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise RigError(f"{' '.join(words)}\nno end after {timeout}s") from error
    if done.returncode != 0:
        output = (done.stdout + done.stderr)[-TAIL_CHARACTERS:]
        raise RigError(f"{' '.join(words)}\nexit status {done.returncode}\n{output}")
    return done.stdout


def run_logged(
    argv: Sequence[str | Path],
    log: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    tied: bool = True,
) -> None:
    """Run a long command with its output in a file; on failure the file's end becomes the error's message.

    tied: the command is killed when this process ends.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in argv]
    with log.open("ab") as sink:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment(env),
            check=False,
            preexec_fn=signal_at_parents_end(signal.SIGKILL) if tied else None,
        )
    if done.returncode != 0:
        raise RigError(f"{' '.join(words)}\nexit status {done.returncode}; the end of {log}:\n{tail(log)}")


def tail(path: Path, characters: int = TAIL_CHARACTERS) -> str:
    """The end of a text file, or nothing when there is no such file."""
    try:
        return path.read_text(errors="replace")[-characters:]
    except FileNotFoundError:
        return ""


def wait_for(what: str, probe: Callable[[], Answer | None], *, timeout: float, every: float = 0.2) -> Answer:
    """Call probe until it returns something true; errors of the rig's own kind count as not yet."""
    deadline = time.monotonic() + timeout
    last: Exception | None = None
    while True:
        try:
            if answer := probe():
                return answer
        except FatalError:
            raise
        except RigError as error:
            last = error
        if time.monotonic() > deadline:
            raise RigError(f"waited {timeout:.0f}s for {what}" + (f"; last answer: {last}" if last else ""))
        time.sleep(every)
