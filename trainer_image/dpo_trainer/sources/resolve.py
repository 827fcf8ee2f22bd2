"""Where models and datasets come from: a hub, files on this machine, a claim, an object store.

How a source is read, in this order:
  pvc://claim/path          a file or folder on a claim, which is mounted at <claims>/<claim>
  s3://… gs://… az://…      an object store; abfs:// is az://
  hf://org/name@revision    a model of the hub, hf://datasets/org/name@revision/path a dataset of it, or files of one
  /… ./… ../… ~/…           a path, relative to the current folder
  anything that exists      the same, as transformers does: a folder `org/name` here wins over the hub's repository
  name or org/name          a repository of the hub
"""

import errno
import logging
import os
import re
from pathlib import Path, PurePosixPath

from dpo_operator.api.base import SUBDOMAIN
from dpo_trainer.runtime.errors import input_not_found, invalid_configuration
from dpo_trainer.sources import remote, stores
from dpo_trainer.sources.kinds import Elsewhere, FileSource, HubSource, Source, readable

__all__ = ["Elsewhere", "FileSource", "HubSource", "Source", "resolve"]

log = logging.getLogger(__name__)

DATASETS = "datasets/"
_HUB_URL = re.compile(
    rf"(?P<dataset>{DATASETS})?(?!(datasets|spaces|models)/)(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.-]+))?(?P<path>/.*)?",
    re.ASCII,
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_CLAIM = re.compile(SUBDOMAIN)
_FILE_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst")


def resolve(source: str, revision: str | None = None, *, claims: Path, elsewhere: Elsewhere | None = None) -> Source:
    """Resolve a source string of the job; files and objects are listed, the hub is not contacted yet, but for files of a dataset.

    claims: folder in which claims are mounted by name. elsewhere: None reaches public stores alone.
    Raises TrainerError: INPUT_NOT_FOUND, ACCESS_DENIED, SOURCE_UNAVAILABLE, INVALID_CONFIGURATION or UNSUPPORTED.
    """
    scheme, mark, rest = source.partition("://")
    if mark and scheme == "pvc":
        return _claim(source, rest, claims)
    if mark and scheme in stores.SCHEMES:
        return remote.in_store(source, elsewhere or Elsewhere())
    if mark and scheme == "hf":
        return _hub_url(source, rest, revision, elsewhere or Elsewhere())
    if mark:
        raise invalid_configuration(
            f"{source}: expected a hub id, a path, pvc://claim/path, s3://, gs://, az:// or hf://, found {scheme}://"
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
    with readable(label):
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
    with readable(label):
        try:
            return path.exists()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return False
            raise


def _stay_inside(label: str, path: Path, inside: Path | None) -> None:
    if inside is not None and not Path(os.path.realpath(path)).is_relative_to(inside):
        raise invalid_configuration(f"{label}: {path.name} is a symbolic link that leads out of the claim")


def _raise(error: OSError) -> None:
    raise error


def _hub_url(label: str, rest: str, revision: str | None, elsewhere: Elsewhere) -> Source:
    """A repository of the hub, or files of a dataset there."""
    found = _HUB_URL.fullmatch(rest)
    if found is None:
        raise invalid_configuration(
            f"{label}: expected hf://org/name for a model, or hf://datasets/org/name/path for data"
        )
    if found["revision"] is not None and revision is not None:
        raise invalid_configuration(
            f"{label}: has a revision, {found['revision']}, and so has the field revision; leave one out"
        )
    whole = HubSource(found["repo"], found["revision"] or revision)
    path = (found["path"] or "").strip("/")
    if not path:
        return whole
    if not found["dataset"]:
        raise invalid_configuration(f"{label}: a model is a whole repository; leave {path} out")
    return remote.in_dataset(label, whole, path, elsewhere)
