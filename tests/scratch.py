"""Folders for temporary files that do not pile up when processes are killed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "dpo-scratch-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder, removed afterwards. One that a killed process left is removed by the next call of any process."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove_unused(left)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    # The kernel drops the lock with its holder.
    holder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(holder)


def _remove_unused(folder: Path) -> None:
    try:
        holder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # somebody else's, or gone
        return
    try:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(holder)
