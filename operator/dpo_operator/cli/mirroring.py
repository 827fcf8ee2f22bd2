"""The mirror of `dpo run`: one process at a time copies new checkpoints while the ranks train."""

import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dpo_operator.cli.parent import signal_at_parents_end

# What a checkpoint is known by: its folder, and when its manifest was written, which is later when it was amended.
_Seen = tuple[str, int]


@dataclass
class LocalMirror:
    """Starts copies. checkpoints: the folder of all checkpoints. command, environment: of one copy. say: prints a line for the user."""

    checkpoints: Path
    command: list[str]
    environment: dict[str, str]
    say: Callable[[str], None]
    _process: subprocess.Popen[bytes] | None = None
    _tried: _Seen | None = None
    _copied: _Seen | None = None
    _stopped: bool = False

    def look(self) -> None:
        """Take note of a copy that has ended, and start one when there is a checkpoint that no copy was tried of. Returns at once."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._end()
        newest = self._newest()
        if newest is not None and newest != self._tried and not self._stopped:
            self._start(newest)

    def finish(self) -> None:
        """Wait until the newest checkpoint is in the mirror, or could not be copied, or the run is stopped."""
        self._wait()
        newest = self._newest()
        if newest is not None and newest != self._copied and not self._stopped:
            self._start(newest)
            self._wait()

    def stop(self) -> None:
        """End a copy that runs, and start no other one; a later run continues it. For signal handlers, too."""
        self._stopped = True
        if self._process is not None:
            self._process.terminate()

    def _wait(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._end()

    def _start(self, newest: _Seen) -> None:
        self._tried = newest
        self._process = subprocess.Popen(
            self.command,
            env=self.environment,
            start_new_session=True,
            preexec_fn=signal_at_parents_end(signal.SIGTERM),
        )

    def _end(self) -> None:
        assert self._process is not None
        if self._process.returncode == 0:
            self._copied = self._tried
        elif not self._stopped:
            self.say("warning: the mirror failed; it is tried again at the next checkpoint")
        self._process = None

    def _newest(self) -> _Seen | None:
        for folder in sorted(self.checkpoints.glob("step-????????*"), reverse=True):
            try:
                if folder.name.removeprefix("step-").isdecimal():
                    return folder.name, (folder / "manifest.json").stat().st_mtime_ns
            except OSError:
                continue  # removed meanwhile
        return None
