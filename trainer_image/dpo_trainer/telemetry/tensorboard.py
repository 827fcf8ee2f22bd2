"""TensorBoard event files, written with TensorBoard's own record format and without torch or TensorFlow."""

import os
import socket
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from dpo_trainer.telemetry.output import Output, Record, Start


class TensorBoardFile:
    """One event file of one attempt. The import takes most of a second, so it waits for the first value."""

    def __init__(self, folder: Path, *, resumed_step: int) -> None:
        self._folder = folder
        self._resumed_step = resumed_step
        self._writer: Any = None
        self._broken = False

    def write(self, record: Record) -> None:
        """Add scalars under the names of TRL's curves. A failure is logged once and ends the file, not the run."""
        if self._broken:
            return
        try:
            if self._writer is None:
                self._open()
            from tensorboard.compat.proto.summary_pb2 import Summary

            parts = [Summary.Value(tag=tag, simple_value=value) for tag, value in record.curves().items()]
            self._event(step=record.step, summary=Summary(value=parts))
            self._writer.flush()
        except (ImportError, OSError) as error:
            self._broken = True
            print(f"TensorBoard files are not written: {error}", file=sys.stderr, flush=True)

    def sync(self) -> None:
        """Nothing to do: every write is flushed."""

    def rewind(self, step: int) -> None:
        """Start another file, which voids the values after `step`."""
        self.close(0)
        self._resumed_step, self._broken = step, False

    def close(self, exit_code: int) -> None:
        """Close the file; closing again does nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer, self._broken = None, True

    def _open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        prefix = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        for number in count():
            # Another attempt in a pod of the same name can have begun within the same second.
            with suppress(FileExistsError):
                self._writer = RecordWriter((self._folder / f"{prefix}.{number}").open("xb"))
                break
        self._event(file_version="brain.Event:2")
        # Tells TensorBoard to forget what an earlier attempt wrote for steps that are now taken again.
        self._event(step=self._resumed_step + 1, session_log=SessionLog(status=SessionLog.START))

    def _event(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())


def output(start: Start) -> Output:
    """Event files, which every run has."""
    return TensorBoardFile(start.work.tensorboard, resumed_step=start.resumed_step)
