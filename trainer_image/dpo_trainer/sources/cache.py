"""A folder of a hub's files that several jobs share, so that each file is downloaded once.

Whoever can write to the folder may put anything there, so nothing in it is trusted. A file is copied into the job's own folder
and the copy's digest is compared with the one that the hub gives; it is never linked, so a later change reaches no job. No
symbolic link is followed, and huggingface_hub never writes here: a file is downloaded into the job's own folder, checked, and only
then copied to the cache under its name.

The first job that lacks a file takes its lock, and the others wait for it; the lock of a process that died is free. A cache that
can't be used only costs the download.
"""

import errno
import fcntl
import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from dpo_trainer.runtime.files import copy_bytes, create, remove
from dpo_trainer.sources import hub

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
# A file takes minutes. A lock that is held longer belongs to a malicious or a hung process.
LONGEST_WAIT_SECONDS = 3600.0
# File systems take 255 bytes, and a lock's name is longer than its file's.
LONGEST_NAME = 200
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a named pipe would wait forever.
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _NotTheFileError(Exception):
    """The file in the cache is not the hub's file."""


@dataclass
class Cache:
    """The shared folder.

    writes: turned off when writing or locking fails; files are still taken from the folder.
    warned: files that a warning was logged for.
    """

    root: Path
    writes: bool = True
    warned: set[str] = field(default_factory=set)

    def fetch(
        self, found: hub.Snapshot, name: str, folder: Path, token: str | None, waiting: Callable[[str], None]
    ) -> None:
        """Put a file of a repository into a folder, from the cache, or from the hub and then into the cache too.

        waiting: called repeatedly during a wait, with a description.
        Raises TrainerError as hub.download does, and SOURCE_UNAVAILABLE for a download that has not the hub's digest.
        """
        if not hub.has_digest(found, name):
            hub.download(found, [name], folder, token)  # nothing to check a copy by
            return
        if hub.is_right(folder / name, found, name):
            return
        with ExitStack() as stack:
            place = self._place(found, stack)
            if place is not None and self._take(place, found, name, folder):
                return
            locked = place is not None and self._lock(place, name, stack, waiting)
            if place is not None and locked and self._take(place, found, name, folder):
                return  # another job downloaded it meanwhile
            remove(folder / name)  # not the hub's file, so the download can't resume from it
            hub.download(found, [name], folder, token)
            hub.require_right(found, name, folder)
            if place is not None and locked:
                self._put(place, name, folder / name)

    def _place(self, found: hub.Snapshot, stack: ExitStack) -> int | None:
        """Descriptor of the folder of a repository's commit; None when it does not exist and can't be made."""
        try:
            place = stack.enter_context(_opened(os.open(self.root, _FOLDER)))
            for part in (f"{found.kind}s", quote(found.repo, safe=""), quote(found.commit, safe="")):
                if self.writes:
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=place)
                place = stack.enter_context(_opened(os.open(part, _FOLDER, dir_fd=place)))
        except OSError as error:
            self._stop_writing(f"can't be used ({error.strerror})")
            return None
        return place

    def _take(self, place: int, found: hub.Snapshot, name: str, folder: Path) -> bool:
        """Copy a file out of the cache. False when the cache lacks the file or has a wrong one."""
        target_path = folder / name
        copy = target_path.with_name(f".{target_path.name}.copy")
        try:
            with _readable(place, _flat(name)) as source:
                size = os.fstat(source.fileno()).st_size
                if size != found.sizes[name]:
                    raise _NotTheFileError(f"it has {size} bytes instead of {found.sizes[name]}")
                copy.parent.mkdir(parents=True, exist_ok=True)
                remove(copy)  # left by a crash
                with create(copy) as target:
                    copy_bytes(source, target, size)
            if not hub.is_right(copy, found, name):
                raise _NotTheFileError("its digest is not the hub's")
            copy.replace(target_path)
        except FileNotFoundError:
            return False
        except _NotTheFileError as error:
            self._warn_once(
                f"the cache's {name} of {found.repo} is not the hub's file ({error}); it is downloaded again", name
            )
        except OSError as error:
            self._warn_once(f"{name} of {found.repo} can't be taken from the cache ({error.strerror})", name)
        else:
            return True
        remove(copy)
        return False

    def _lock(self, place: int, name: str, stack: ExitStack, waiting: Callable[[str], None]) -> bool:
        """Wait for a file's lock; False when locking fails. The lock is held until the stack ends."""
        if not self.writes:
            return False
        until = time.monotonic() + LONGEST_WAIT_SECONDS
        try:
            lock = stack.enter_context(
                _opened(os.open(f".{_flat(name)}.lock", _FILE | os.O_RDWR | os.O_CREAT, 0o666, dir_fd=place))
            )
            while not _locked(lock):
                if time.monotonic() > until:
                    self._stop_writing(f"is locked by another for {LONGEST_WAIT_SECONDS:.0f} s")
                    return False
                waiting(f"waiting for another job that downloads {name} into the cache")
                time.sleep(POLL_SECONDS)
        except OSError as error:
            self._stop_writing(f"gives no lock ({error.strerror})")
            return False
        return True

    def _put(self, place: int, name: str, file: Path) -> None:
        """Copy a checked file into the cache; the caller holds its lock. The name appears when all of it is on the disk."""
        kept = _flat(name)
        partial = f".{kept}.partial"
        try:
            for old in (partial, kept):  # left by a job that was killed; not the hub's file
                with suppress(FileNotFoundError):
                    os.unlink(old, dir_fd=place)
            flags = _FILE | os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with file.open("rb") as source, os.fdopen(os.open(partial, flags, 0o666, dir_fd=place), "wb") as target:
                copy_bytes(source, target, os.fstat(source.fileno()).st_size)
                os.fsync(target.fileno())
            os.rename(partial, kept, src_dir_fd=place, dst_dir_fd=place)
            os.fsync(place)
        except OSError as error:
            with suppress(OSError):
                os.unlink(partial, dir_fd=place)
            self._stop_writing(f"takes no files ({error.strerror})")

    def _warn_once(self, text: str, name: str) -> None:
        """Warn about a file once: it is checked before the lock is held and again with the lock."""
        if name not in self.warned:
            log.warning("%s", text)
        self.warned.add(name)

    def _stop_writing(self, why: str) -> None:
        if self.writes:
            log.warning("the cache %s %s; the job downloads what it can't take from there", self.root, why)
        self.writes = False


def _flat(name: str) -> str:
    """Name under which a file is kept: the repository's folders are part of it, so that none can be replaced by a link."""
    flat = quote(name, safe="")
    return flat if len(flat) <= LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()


@contextmanager
def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _readable(place: int, name: str) -> Iterator[BinaryIO]:
    """A regular file of the cache. Raises _NotTheFileError for anything else, FileNotFoundError, OSError."""
    try:
        descriptor = os.open(name, _FILE | os.O_RDONLY, dir_fd=place)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _NotTheFileError("it is a symbolic link") from error
        if error.errno == errno.ENXIO:
            raise _NotTheFileError("it is a socket") from error
        raise
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _NotTheFileError("it is no file")
        yield file


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
