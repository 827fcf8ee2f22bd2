"""One user of a cluster at a time, and nothing left of a cluster whose user was interrupted or killed.

A process that boots a cluster starts a guardian first. The guardian holds the reading end of a pipe whose other end the
kernel closes with the process, whatever ends it; then the guardian removes the cluster, unless it was told that the cluster
stays. It shares the lock of the cluster's user, so that nobody boots the cluster anew while it is being removed. If even
the guardian was killed, the next user of any cluster removes what is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.cluster.rig import remains
from tests.cluster.rig.layout import CHECKOUT, STATE_VARIABLE, Layout, locked, state_root
from tests.cluster.rig.shell import RigError, say

STAYS = b"stays"
GUARDIAN = "import sys; from tests.cluster.rig.usage import guard; guard(sys.argv[1])"
# A guardian that removes a cluster is waited for; a user that works with it is not.
PATIENCE_SECONDS = 30.0


@dataclass
class Use:
    """The right to boot and remove the cluster of this name, until the end of `in_use`."""

    name: str
    _lock: IO[str]
    _guardian: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def begin(self) -> Layout:
        """Remove what an earlier cluster left. What is started from now on ends with this use, or with this process."""
        remains.remove(self.name)
        if self._guardian is None:
            self._guardian = subprocess.Popen(
                [sys.executable, "-c", GUARDIAN, self.name],
                cwd=CHECKOUT,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=os.environ | {STATE_VARIABLE: str(state_root())},
                pass_fds=[self._lock.fileno()],
                # Ctrl-C is for the process that it guards.
                start_new_session=True,
            )
        return Layout.of(self.name)

    def leave_running(self) -> None:
        """The cluster stays up after this use."""
        layout = Layout.of(self.name)
        layout.left_running.touch()
        self._release(STAYS)

    def end(self) -> None:
        """Remove what was begun, unless it stays."""
        if self._guardian is None:
            return
        try:
            remains.remove(self.name)
        finally:
            self._release(b"")

    def _release(self, word: bytes) -> None:
        guardian, self._guardian = self._guardian, None
        if guardian is not None:
            guardian.communicate(word)


@contextmanager
def in_use(name: str) -> Iterator[Use]:
    """One user at a time: a second run of the tests must not remove the first one's cluster."""
    busy = f"cluster {name} is in use by another process"
    with locked(lock_of(name), busy=busy, patience=PATIENCE_SECONDS) as lock:
        remove_abandoned(name)
        use = Use(name, lock)
        try:
            yield use
        finally:
            use.end()


def lock_of(name: str) -> Path:
    return state_root() / f"{name}.lock"


def remove_abandoned(own: str) -> None:
    """Remove clusters that nobody uses and nobody left running: their users and guardians were killed."""
    for folder in state_root().iterdir():
        layout = Layout.of(folder.name)
        if folder.name == own or not folder.is_dir() or layout.left_running.exists():
            continue
        try:
            with locked(lock_of(folder.name), busy="in use"):
                say(f"removing cluster {folder.name}, which a killed process left")
                remains.remove(folder.name)
        except (RigError, OSError):
            continue  # in use, or somebody else's


def guard(name: str) -> None:
    """Wait for the end of the process that started this one, then remove its cluster unless it stays."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() != STAYS:
        remains.remove(name)
