"""What a source can be: a repository of a hub, or files, here or elsewhere."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration
from dpo_trainer.runtime.files import copy_bytes, create, open_regular, remove
from dpo_trainer.sources.access import Access


@dataclass(frozen=True)
class HubSource:
    """A repository of the hub."""

    repo: str
    revision: str | None

    @property
    def label(self) -> str:
        """How messages name it."""
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


class Remote(Protocol):
    """Files of a source that are elsewhere."""

    def fetch(self, name: str, target: Path, progress: Callable[[float], None]) -> None:
        """Download a file into another, resuming an interrupted download. Raises TrainerError."""

    def here(self, name: str) -> Path:
        """The file, downloaded unless it was before. Raises TrainerError."""


@dataclass(frozen=True)
class FileSource:
    """A file, or a folder with what is below it.

    label: the source as the job names it, for messages.
    kind: path, claim, hub, or the object store's scheme.
    sizes: bytes of each file, by its name relative to root; for a file, its own name alone.
    inside: folder that no link may lead out of, without links in its own path; None allows any place.
    remote: how files that are elsewhere are downloaded; None for files that are here.
    """

    label: str
    kind: str
    root: str
    is_file: bool
    sizes: Mapping[str, int]
    inside: Path | None = None
    remote: Remote | None = field(default=None, repr=False, compare=False)

    def open(self, name: str) -> IO[bytes]:
        """Open one of the files for reading, if it is still the kind of file that was listed.

        Raises TrainerError: INVALID_CONFIGURATION for a link that leads out of the claim by now, or for no regular file;
        SOURCE_UNAVAILABLE when the file is gone or has another size; ACCESS_DENIED. A file that is elsewhere is downloaded first.
        """
        if self.remote is not None:
            return self.remote.here(name).open("rb")
        return self._open_checked(name, Path(self.root if self.is_file else f"{self.root}/{name}"))

    def fetch(self, name: str, target: Path, progress: Callable[[float], None] = lambda _: None) -> None:
        """Copy or download one of the files into a new file. progress: called with the finished share, 0 to 1.

        Raises TrainerError as open does; OSError of the target.
        """
        if self.remote is not None:
            self.remote.fetch(name, target, progress)
            return
        remove(target)  # left by a crash
        with self.open(name) as source, create(target) as file:
            copied = copy_bytes(cast(BinaryIO, source), file, self.sizes[name])
        if copied != self.sizes[name]:
            raise self.changed(name, f"ended after {copied} of {self.sizes[name]} bytes")

    def _open_checked(self, name: str, path: Path) -> IO[bytes]:
        try:
            with readable(self.label):
                file = open_regular(path, self.inside)
        except FileNotFoundError as error:
            raise self.changed(name, "is gone") from error
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EXDEV, errno.ELOOP):
                raise invalid_configuration(f"{self.label}: {name} {error.strerror}") from error
            raise
        size = os.fstat(file.fileno()).st_size
        if size != self.sizes[name]:
            file.close()
            raise self.changed(name, f"has {size} bytes by now, {self.sizes[name]} when it was listed")
        return file

    def changed(self, name: str, how: str) -> TrainerError:
        """The error for a file that changes while the job reads it."""
        return TrainerError(
            ExitCode.SOURCE_UNAVAILABLE,
            f"{self.label}: {name} {how}; let nobody write to a source while a job reads it",
        )


Source = HubSource | FileSource


@dataclass(frozen=True)
class Elsewhere:
    """How files that are elsewhere are reached. token: of the hub. folder: where files go that are opened here; None where all are
    fetched to a place of their own.

    progress: called with what is being downloaded.
    """

    access: Access = field(default_factory=Access)
    token: str | None = field(default=None, repr=False)
    folder: Path | None = None
    progress: Callable[[str], None] = lambda _: None


@contextmanager
def readable(label: str) -> Iterator[None]:
    """Turn a refusal of this machine's own file system into a TrainerError."""
    try:
        yield
    except PermissionError as error:
        raise TrainerError(
            ExitCode.ACCESS_DENIED,
            f"{label}: {error.filename} may not be read by user {os.geteuid()}; change its owner or mode",
        ) from error
