"""Sizes of the work folder's file system, for /status.

They are read in a thread of their own: a network file system that hangs must not block /status.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dpo_operator.api.reports import CheckpointRecord, CheckpointRef, VolumeReport
from dpo_trainer.runtime.workdir import WorkDir

INTERVAL_SECONDS = 30.0


class CheckpointFolder(Protocol):
    """What telemetry reports of a job's checkpoints; telemetry itself knows nothing of their files."""

    def newest(self) -> tuple[int, Path] | None:
        """Step and folder of the newest checkpoint. Raises OSError."""

    def records(self, before: Sequence[CheckpointRecord], newest: CheckpointRef | None) -> list[CheckpointRecord]:
        """Records of the checkpoints that are still there, oldest first."""

    def keep(self, record: CheckpointRecord) -> None:
        """Report a checkpoint that lies elsewhere, too."""


class NoCheckpoints:
    """A run without checkpoints."""

    def newest(self) -> None:
        """There is none."""

    def records(self, before: Sequence[CheckpointRecord], newest: CheckpointRef | None) -> list[CheckpointRecord]:
        """There are none."""
        return []

    def keep(self, record: CheckpointRecord) -> None:
        """None is reported."""


class VolumeWatch:
    """Reads at once, and then at intervals, until closed. newest: the last reading, None before there is one."""

    def __init__(self, work: WorkDir, checkpoints: CheckpointFolder, *, interval: float = INTERVAL_SECONDS) -> None:
        self.newest: VolumeReport | None = None
        self._work = work
        self._checkpoints = checkpoints
        self._interval = interval
        self._sized: tuple[int, int | None] = (-1, None)
        self._closed = threading.Event()
        # A daemon: one that hangs in the kernel does not keep the process from ending.
        threading.Thread(target=self._run, name="volume", daemon=True).start()

    def close(self) -> None:
        """Read no more."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            self.newest = self._read()
            self._closed.wait(self._interval)

    def _read(self) -> VolumeReport | None:
        try:
            disk = os.statvfs(self._work.root)
        except OSError:
            return None
        if disk.f_blocks == 0:
            # Some network file systems report no sizes at all.
            return None
        total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        return VolumeReport(total=total, free=free, checkpoint=self._checkpoint())

    def _checkpoint(self) -> int | None:
        """Bytes of the newest checkpoint, measured once for each checkpoint."""
        try:
            if (newest := self._checkpoints.newest()) is not None and newest[0] != self._sized[0]:
                self._sized = (newest[0], _size(newest[1]))
        except OSError:
            # It may just be removed; the next reading sees another one.
            pass
        return self._sized[1]


def _size(folder: Path) -> int:
    return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder))
