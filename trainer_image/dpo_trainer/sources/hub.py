"""The Hugging Face hub: what a repository holds, its files, its datasets. No code from a repository is ever run."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.sources.kinds import HubSource
from dpo_trainer.sources.retrying import retrying


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit.

    sizes: bytes of each file. sha256: hex digests of large files. git_sha1: git's blob digests of the other files.
    """

    repo: str
    commit: str
    sizes: dict[str, int]
    sha256: dict[str, str]
    git_sha1: dict[str, str] = field(default_factory=dict)
    kind: Literal["model", "dataset"] = "model"


# Puts a file of a repository into a folder, under its name.
Fetch = Callable[[Snapshot, str, Path], None]


def snapshot(source: HubSource, token: str | None) -> Snapshot:
    """Resolve a model's revision to a commit and its files.

    Raises TrainerError: ACCESS_DENIED, INPUT_NOT_FOUND, SOURCE_UNAVAILABLE or INVALID_CONFIGURATION.
    """
    from huggingface_hub import HfApi

    info = retrying(
        lambda: HfApi(token=token).model_info(source.repo, revision=source.revision, files_metadata=True), source.label
    )
    return snapshot_of(source.repo, info, "model")


def dataset_snapshot(source: HubSource, token: str | None) -> Snapshot:
    """Resolve a dataset's revision to a commit and its files. Raises TrainerError as snapshot does."""
    from huggingface_hub import HfApi

    info = retrying(
        lambda: HfApi(token=token).dataset_info(source.repo, revision=source.revision, files_metadata=True),
        source.label,
    )
    return snapshot_of(source.repo, info, "dataset")


def snapshot_of(repo: str, info: Any, kind: Literal["model", "dataset"]) -> Snapshot:
    """Snapshot from the hub's answer. info: ModelInfo or DatasetInfo with files."""
    # Names become paths. Names in git stay inside the folder, but a malicious endpoint may return others.
    files = [file for file in info.siblings or [] if _is_plain(file.rfilename)]
    sha256 = {file.rfilename: file.lfs.sha256 for file in files if file.lfs is not None}
    blobs = {
        file.rfilename: file.blob_id for file in files if file.lfs is None and file.blob_id and file.size is not None
    }
    sizes = {file.rfilename: int(file.size or 0) for file in files}
    return Snapshot(repo, str(info.sha), sizes, sha256, blobs, kind)


def _is_plain(name: str) -> bool:
    """Whether a name leads to a place below the folder that it's put into."""
    path = PurePosixPath(name)
    return str(path) == name and not path.is_absolute() and ".." not in path.parts and not set(name) & {"\\", "\0"}


def download(found: Snapshot, names: Sequence[str], folder: Path, token: str | None) -> None:
    """Download files of a repository into a folder, resuming interrupted downloads.

    Raises TrainerError: ACCESS_DENIED, INPUT_NOT_FOUND or SOURCE_UNAVAILABLE.
    """
    from huggingface_hub import hf_hub_download

    for name in names:
        call = partial(
            hf_hub_download,
            found.repo,
            name,
            repo_type=found.kind,
            revision=found.commit,
            local_dir=folder,
            token=token,
        )
        retrying(call, f"{found.repo}/{name}")


def is_right(path: Path, found: Snapshot, name: str) -> bool:
    """Whether a file has the size and the digest that the hub gives: SHA-256, or git's SHA-1 of small files. Raises OSError."""
    if not path.is_file() or path.stat().st_size != found.sizes[name]:
        return False
    with path.open("rb") as file:
        if name in found.sha256:
            return hashlib.file_digest(file, "sha256").hexdigest() == found.sha256[name]
        digest = hashlib.sha1(f"blob {found.sizes[name]}\0".encode(), usedforsecurity=False)
        return hashlib.file_digest(file, lambda: digest).hexdigest() == found.git_sha1[name]


def has_digest(found: Snapshot, name: str) -> bool:
    """Whether the hub gives a digest of a file."""
    return name in found.sizes and (name in found.sha256 or name in found.git_sha1)


def require_right(found: Snapshot, name: str, folder: Path) -> None:
    """Compare a downloaded file with the hub's digest, and remove one that differs. Raises TrainerError SOURCE_UNAVAILABLE."""
    if has_digest(found, name) and not is_right(folder / name, found, name):
        (folder / name).unlink()
        raise TrainerError(
            ExitCode.SOURCE_UNAVAILABLE, f"{found.repo}: the download of {name} has not the hub's digest"
        )


def discard_download_state(folder: Path) -> None:
    """Remove what huggingface_hub keeps beside the files to resume a download."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)
