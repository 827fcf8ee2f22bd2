"""Reading files of a checkpoint without following links, and the reason why one can't be read."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from dpo_operator.api.text import shown
from dpo_trainer.runtime import volume_errors
from dpo_trainer.runtime.volume_errors import Kind

# These errors mean that the volume is gone or the process has no more files or memory, not that a file is bad: an older checkpoint
# would be no better, and the newest may be good.
_VOLUME = frozenset({Kind.GONE, Kind.STALE, Kind.UNREACHABLE, Kind.EXHAUSTED})


class BadCheckpoint(Exception):
    """A checkpoint can't be trusted; the message says why."""


def unreadable(name: str, error: OSError) -> BadCheckpoint:
    """BadCheckpoint for an error of the file. Re-raises errors of the volume."""
    if volume_errors.kind(error) in _VOLUME:
        raise error
    return BadCheckpoint(f"{name}: {error.strerror}")


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file for reading. A link is refused: it could lead out of the job's folder. Raises OSError."""
    # Without O_NONBLOCK, opening a named pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_plain(path: Path, *, limit: int) -> bytes:
    """Content of a regular file of at most limit bytes. Raises OSError."""
    with open_plain(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"expected at most {limit} bytes, found more", str(path))
    return content


def sanitized(text: str) -> str:
    """Untrusted text, shortened to one line."""
    return shown(text, 120)
