"""Files that survive a power cut, and their digests."""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
