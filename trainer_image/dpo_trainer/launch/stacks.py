"""Stack dumps of hung ranks, in the pod's log and in a file on the volume that outlives the pod.

On SIGUSR1 faulthandler dumps the stacks of all threads, from C and so also inside a collective, into a container-local file: the
volume may be what hangs. The launcher copies new text to the log and to the volume. The state of stopped or uninterruptible ranks,
which can't dump, is read from /proc.
"""

import contextlib
import faulthandler
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dpo_operator.api import names
from dpo_trainer.runtime.workdir import WorkDir

ENV_STACKS_FILE = "DPO_STACKS_FILE"
# Bytes kept of one dump of one rank; the rest is left out.
MAX_BYTES = 262_144
# Attempts whose stacks are kept on the volume.
KEPT_ATTEMPTS = 10
# How long the launcher waits for the volume before it exits, seconds.
COPY_SECONDS = 2.0
STATES = {"T": "stopped", "t": "stopped by a debugger", "D": "waiting in the kernel", "Z": "ended, not reaped"}


def register() -> None:
    """Dump the stacks of all threads on SIGUSR1, into the launcher's file, else to the log."""
    faulthandler.enable()
    path = os.environ.get(ENV_STACKS_FILE)
    # Open for as long as the process lives: the handler can't open files.
    file = open(path, "a") if path else sys.stderr  # noqa: SIM115
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)


def state(pid: int) -> str:
    """State of a process as one letter, as in `ps`; empty when it has exited."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def unresponsive_reason(pid: int) -> str:
    """Why a process can't handle a signal now; empty if it can."""
    letter = state(pid)
    if letter not in STATES:
        return ""
    where = _kernel_function(pid) if letter == "D" else ""
    return f"is {STATES[letter]} (state {letter}{where})"


def _kernel_function(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/wchan").read_text().strip()
    except OSError:
        return ""
    return f", in {name}" if name not in ("", "0") else ""


@dataclass
class Stacks:
    """The launcher's side of stack dumps.

    folder: container-local, with one file for each local rank. work: on the volume. ranks: global rank by local rank.
    """

    folder: Path
    work: WorkDir
    attempt: int
    ranks: Mapping[int, int]
    say: Callable[[str], None]
    _shown: dict[int, int] = field(default_factory=dict)
    _copies: list[threading.Thread] = field(default_factory=list)

    def file(self, local_rank: int) -> Path:
        """File that a rank dumps to."""
        return self.folder / f"stacks-{local_rank}"

    def request(self, running: Mapping[int, int], why: str) -> None:
        """Request stack dumps. running: local rank by process id. why: for the log.

        A stopped rank gets SIGCONT, without which it can neither dump nor save. SIGUSR1 is sent before it.
        """
        if not running:
            return
        listed = ", ".join(str(self.ranks[local]) for local in sorted(running.values()))
        self.say(f"launch: {why}; stacks of ranks {listed} follow, and go to {self.where()} on the volume")
        for pid, local_rank in sorted(running.items(), key=lambda item: item[1]):
            if found := unresponsive_reason(pid):
                note = f"rank {self.ranks[local_rank]} {found}"
                self.say(f"launch: {note}")
                self._copy(local_rank, f"{_now()} {note}\n")
            _kill(pid, signal.SIGUSR1)
            if state(pid) == "T":
                _kill(pid, signal.SIGCONT)

    def collect(self, local_ranks: Iterable[int], *, missed: Collection[int] = ()) -> None:
        """Log and copy what ranks have dumped since the last call. missed: ranks that are reported if they have dumped nothing."""
        for local_rank in local_ranks:
            rank, text = self.ranks[local_rank], self._new_text(local_rank)
            if text:
                self.say(f"launch: stacks of rank {rank}:\n{text.rstrip()}")
                self._copy(local_rank, f"{_now()} stacks of rank {rank}:\n{text}\n")
            elif local_rank in missed:
                self.say(f"launch: rank {rank} gave no stacks")

    def where(self) -> str:
        """Folder of this attempt, relative to the work folder."""
        return f"{names.STACKS}/attempt-{self.attempt}"

    def make_folder(self) -> None:
        """Make this attempt's folder in the background, for what libraries write into it: a hung volume must not hold up the ranks."""

        def make() -> None:
            with contextlib.suppress(OSError):
                (self.work.root / self.where()).mkdir(parents=True, exist_ok=True)

        self._copies.append(threading.Thread(target=make, daemon=True))
        self._copies[-1].start()

    def finish(self) -> None:
        """Wait for the copies, at most COPY_SECONDS: a hung volume must not delay the pod's exit."""
        end = time.monotonic() + COPY_SECONDS
        for thread in self._copies:
            thread.join(max(0.0, end - time.monotonic()))

    def _new_text(self, local_rank: int) -> str:
        begin = self._shown.get(local_rank, 0)
        try:
            with self.file(local_rank).open("rb") as file:
                file.seek(begin)
                data = file.read()
        except OSError:
            return ""
        self._shown[local_rank] = begin + len(data)
        text = data[:MAX_BYTES].decode(errors="replace")
        return text if len(data) <= MAX_BYTES else f"{text}\n[{len(data) - MAX_BYTES} bytes left out]"

    def _copy(self, local_rank: int, text: str) -> None:
        path = self.work.root / self.where() / f"rank-{self.ranks[local_rank]}.txt"
        # In a thread, because a write to a hung volume never returns.
        thread = threading.Thread(target=self._append, args=(path, text), daemon=True)
        self._copies.append(thread)
        thread.start()

    def _append(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Two copies may run at the same time; each is one write to the end of the file.
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
            if 0 in self.ranks.values():
                _prune(path.parent.parent)
        except OSError as error:
            self.say(f"launch: stacks can't be written to {path}: {error.strerror}")


def _prune(folder: Path) -> None:
    """Delete all but the KEPT_ATTEMPTS newest attempts. Only the pod of rank 0 does this."""
    numbers = sorted(
        int(number) for found in folder.glob("attempt-*") if (number := found.name.removeprefix("attempt-")).isdecimal()
    )
    for attempt in numbers[:-KEPT_ATTEMPTS]:
        shutil.rmtree(folder / f"attempt-{attempt}", ignore_errors=True)


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
