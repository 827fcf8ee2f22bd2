"""Reading files of a checkpoint without following links, and saying what is wrong with them."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# Errors that say that the volume is gone or the process has no more files or memory, not that a file is bad: an older checkpoint
# would be no better, and the newest may be good.
_NOT_OF_THE_FILE = frozenset(
    {
        errno.ENOTCONN, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
        errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    }
)  # fmt: skip


class BadCheckpoint(Exception):
    """A checkpoint can't be trusted; the message says why."""


def unreadable(name: str, error: OSError) -> BadCheckpoint:
    """What is said of a file that can't be read. Raises the error again when it says nothing of the file."""
    if error.errno in _NOT_OF_THE_FILE:
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


def shown(text: str) -> str:
    """Text of a stranger, short and on one line."""
    text = text if len(text) <= 120 else text[:120] + "…"
    return text if text.isprintable() else ascii(text)
