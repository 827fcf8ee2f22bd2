"""Where models and datasets come from: a hub, files on this machine, a claim, an object store.

How a source is read, in this order:
  pvc://claim/path          a file or folder on a claim, which is mounted at <claims>/<claim>
  s3://… gs://…             an object store, through s3fs or gcsfs
  /… ./… ../… ~/…           a path, relative to the current folder
  anything that exists      the same, as transformers does: a folder `org/name` here wins over the hub's repository
  name or org/name          a repository of the hub
"""

import errno
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from dpo_operator.api.base import SUBDOMAIN
from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError, input_not_found, invalid_configuration
from dpo_trainer.runtime.files import open_regular
from dpo_trainer.sources.retrying import retrying

log = logging.getLogger(__name__)

_OBJECT_STORES = {"s3": "s3", "gs": "gcs"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_CLAIM = re.compile(SUBDOMAIN)
_FILE_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst")


@dataclass(frozen=True)
class HubSource:
    """A repository of the hub."""

    repo: str
    revision: str | None

    @property
    def label(self) -> str:
        """How messages name it."""
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class FileSource:
    """A file, or a folder with what is below it.

    label: the source as the job names it, for messages.
    kind: path, claim, or the object store's scheme.
    sizes: bytes of each file, by its name relative to root; for a file, its own name alone.
    inside: folder that no link may lead out of, without links in its own path; None allows any place.
    """

    label: str
    kind: str
    root: str
    is_file: bool
    sizes: Mapping[str, int]
    inside: Path | None = None
    filesystem: Any = field(default=None, repr=False, compare=False)

    def open(self, name: str) -> IO[bytes]:
        """Open one of the files for reading, if it is still the kind of file that was listed.

        Raises TrainerError: INVALID_CONFIGURATION for a link that leads out of the claim by now, or for no regular file;
        SOURCE_UNAVAILABLE when the file is gone or has another size; ACCESS_DENIED.
        """
        path = self.root if self.is_file else f"{self.root}/{name}"
        if self.filesystem is None:
            return self._open_checked(name, Path(path))
        return retrying(lambda: self.filesystem.open(path, "rb"), self.label)

    def _open_checked(self, name: str, path: Path) -> IO[bytes]:
        try:
            with _readable(self.label):
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


def resolve(source: str, revision: str | None = None, *, claims: Path) -> Source:
    """Resolve a source string of the job; files are listed, the hub is not contacted yet.

    claims: folder in which claims are mounted by name.
    Raises TrainerError: INPUT_NOT_FOUND, ACCESS_DENIED, SOURCE_UNAVAILABLE, INVALID_CONFIGURATION or UNSUPPORTED.
    """
    scheme, mark, rest = source.partition("://")
    if mark and scheme == "pvc":
        return _claim(source, rest, claims)
    if mark and scheme in _OBJECT_STORES:
        return _object_store(source, scheme)
    if mark:
        raise invalid_configuration(
            f"{source}: expected a hub id, a path, pvc://claim/path, s3:// or gs://, found {scheme}://"
        )
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:
        raise input_not_found(f"{source}: no such user, or one without a home; write the path from / on") from error
    explicit = source.startswith(("/", "./", "../", "~")) or source in (".", "..")
    if explicit or _exists(path, source):
        if not explicit:
            log.info("%s is read from this machine, %s, and not from a hub", source, path.resolve())
        return _local(source, path)
    if _HUB_ID.fullmatch(source) and not source.endswith(_FILE_SUFFIXES):
        return HubSource(source, revision)
    raise input_not_found(f"{source}: no such file or folder in {Path.cwd()}, and it is not a hub id (org/name)")


def _local(label: str, path: Path) -> FileSource:
    if not _exists(path, label):
        raise input_not_found(f"{label}: no such file or folder ({path.absolute()})")
    return _listed(label, "path", path, inside=None)


def _claim(label: str, rest: str, claims: Path) -> FileSource:
    claim, _, inner = rest.partition("/")
    if not _CLAIM.fullmatch(claim):
        raise invalid_configuration(f"{label}: expected pvc://claim/path, found no claim's name")
    if ".." in PurePosixPath(inner).parts:
        raise invalid_configuration(f"{label}: '..' is not allowed in a path on a claim")
    mount = claims / claim
    if not _exists(mount, label):
        raise input_not_found(f"{label}: claim {claim} is not mounted; it must exist in the job's namespace ({mount})")
    path = mount / inner.strip("/")
    if not _exists(path, label):
        raise input_not_found(f"{label}: the claim has no file or folder {inner or '/'}")
    return _listed(label, "claim", path, inside=Path(os.path.realpath(mount)))


def _listed(label: str, kind: str, path: Path, inside: Path | None) -> FileSource:
    """Files below a path. inside: folder that no symbolic link may lead out of; None follows links anywhere."""
    with _readable(label):
        _stay_inside(label, path, inside)
        if path.is_file():
            return FileSource(label, kind, str(path), True, {path.name: path.stat().st_size}, inside)
        if not path.is_dir():
            raise input_not_found(f"{label}: expected a file or a folder, found a device, pipe or socket")
        sizes = {}
        for folder, folders, files in os.walk(path, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                file = Path(folder) / name
                _stay_inside(label, file, inside)
                if file.is_file():
                    sizes[file.relative_to(path).as_posix()] = file.stat().st_size
        return FileSource(label, kind, str(path), False, sizes, inside)


def _exists(path: Path, label: str) -> bool:
    """Whether a path exists; a name that no file can have does not."""
    with _readable(label):
        try:
            return path.exists()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return False
            raise


@contextmanager
def _readable(label: str) -> Iterator[None]:
    """Turn a refusal of this machine's own file system into a TrainerError."""
    try:
        yield
    except PermissionError as error:
        raise TrainerError(
            ExitCode.ACCESS_DENIED,
            f"{label}: {error.filename} may not be read by user {os.geteuid()}; change its owner or mode",
        ) from error


def _stay_inside(label: str, path: Path, inside: Path | None) -> None:
    if inside is not None and not Path(os.path.realpath(path)).is_relative_to(inside):
        raise invalid_configuration(f"{label}: {path.name} is a symbolic link that leads out of the claim")


def _raise(error: OSError) -> None:
    raise error


def _object_store(label: str, scheme: str) -> FileSource:
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(label)
    except ImportError as error:
        raise TrainerError(
            ExitCode.UNSUPPORTED,
            f"{label}: reading {scheme}:// needs a package that is not installed ({error.name or error}); install the extra "
            f"dpo-operator[{_OBJECT_STORES[scheme]}], or use a trainer image that has it",
        ) from error
    root = root.rstrip("/")
    found = retrying(lambda: filesystem.find(root, detail=True), label)
    sizes = {path: int(info.get("size") or 0) for path, info in found.items() if info.get("type") == "file"}
    if not sizes:
        raise input_not_found(f"{label}: no object has this name or begins with it and a slash")
    if set(sizes) == {root}:
        return FileSource(label, scheme, root, True, {PurePosixPath(root).name: sizes[root]}, filesystem=filesystem)
    relative = {path.removeprefix(f"{root}/"): size for path, size in sizes.items() if path.startswith(f"{root}/")}
    return FileSource(label, scheme, root, False, relative, filesystem=filesystem)
