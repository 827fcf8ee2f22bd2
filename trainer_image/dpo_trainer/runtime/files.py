"""Files that survive a power cut, their digests, and reading files that somebody else may replace meanwhile."""

import errno
import hashlib
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path, inside: Path | None = None) -> BinaryIO:
    """Open a regular file for reading, also in a folder where others replace files meanwhile.

    The name is looked up once, without opening what it names: opening a pipe waits, and opening a device may act. What is checked is
    then what is read. Links are followed.
    inside: the file must be below this folder, whose path must have no links; None allows any place.
    Raises OSError: EINVAL for anything but a regular file, EXDEV for a file that is not inside.
    """
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        itself = f"/proc/self/fd/{found}"
        if inside is not None and not Path(os.readlink(itself)).is_relative_to(inside):
            raise OSError(errno.EXDEV, f"is a symbolic link that leads out of {inside}", str(path))
        try:
            return os.fdopen(os.open(itself, os.O_RDONLY | os.O_CLOEXEC), "rb")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(found)


def copy_bytes(source: BinaryIO, target: BinaryIO, size: int) -> int:
    """Copy at most `size` bytes; returns how many there were. File systems that can do so share the blocks until one side changes.

    source, target: files of the operating system, or a source that is read from an object store. Raises OSError.
    """
    left = size
    with suppress(OSError):  # from another file system, or one that can't: the rest is copied below
        while left and (copied := os.copy_file_range(source.fileno(), target.fileno(), left)):
            left -= copied
    while left and (piece := source.read(min(left, 4 << 20))):
        target.write(piece)
        left -= len(piece)
    return size - left


def create(path: Path) -> BinaryIO:
    """Create a file and open it for writing.

    Raises FileExistsError when the path exists, also as a link; OSError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def write_synced(path: Path, content: bytes) -> None:
    """Create a small file and flush it to disk. Raises FileExistsError, OSError."""
    with create(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(path: Path, content: bytes) -> None:
    """Write a file atomically: after a crash it has either the old or the new content. Raises OSError."""
    temporary = path.with_suffix(".tmp")
    remove(temporary)  # left by a crash
    write_synced(temporary, content)
    temporary.replace(path)
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a folder and its content, a file, or a link itself. Errors are ignored."""
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
    shutil.rmtree(path, ignore_errors=True)
