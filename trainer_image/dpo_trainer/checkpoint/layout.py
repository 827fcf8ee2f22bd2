"""What is on the volume: folders, names and the manifest.

checkpoints/attempt                        number of the newest attempt that began: the fence
checkpoints/step-00000050/manifest.json    written last; it names every other file with its SHA-256
checkpoints/step-00000050/rank-00000.safetensors
checkpoints/step-00000050.attempt-2.tmp    being written, or left by a crash
"""

import hashlib
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dpo_operator.api.reports import CheckpointRef

FENCE = "attempt"
MANIFEST = "manifest.json"
_FOLDER = re.compile(r"step-(\d{8,12})")
_TEMPORARY = re.compile(r"step-\d{8,12}\.(attempt-\d+|replaced)\.tmp")
_SHARD = re.compile(r"rank-\d{5}\.safetensors")


class BadCheckpoint(Exception):
    """A checkpoint can't be trusted; the message says why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameter(_Part):
    """A trained parameter as a whole. dtype: of the model, such as bfloat16; what is stored is always float32."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


class File(_Part):
    """A file of the checkpoint, in bytes and SHA-256 hex."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(_Part):
    """Everything that is needed to go on, apart from the tensors.

    identity: what must be equal for the run to be the same one, as path -> value.
    adam_step: updates that the optimizer has counted, for its bias correction.
    state: the loop's own: data cursor and what else it needs. metrics: TRL's keys, eval_ for evaluations.
    """

    format: Literal[1] = 1
    step: int = Field(ge=0)
    attempt: int = Field(ge=1)
    world_size: int = Field(ge=1)
    time: float
    identity: dict[str, Any]
    parameters: dict[str, Parameter]
    adam_step: int = Field(ge=0)
    files: dict[str, File]
    state: dict[str, Any]
    metrics: dict[str, float | None]
    versions: dict[str, str]

    def to_bytes(self) -> bytes:
        """The file's content; its SHA-256 is the checkpoint's digest."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, allow_nan=False).encode()


def folder_name(step: int) -> str:
    """Name of a committed checkpoint."""
    return f"step-{step:08d}"


def temporary_name(step: int, attempt: int) -> str:
    """Name of a checkpoint that is being written."""
    return f"{folder_name(step)}.attempt-{attempt}.tmp"


def shard_name(rank: int) -> str:
    """File of one rank."""
    return f"rank-{rank:05d}.safetensors"


def committed(root: Path) -> list[tuple[int, Path]]:
    """Steps and folders of committed checkpoints, newest first. Links and other names are passed over."""
    found = []
    if root.is_dir():
        for entry in os.scandir(root):
            match = _FOLDER.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                found.append((int(match[1]), Path(entry.path)))
    return sorted(found, reverse=True)


def temporary_folders(root: Path) -> list[Path]:
    """Folders that a crash or a failed save left."""
    if not root.is_dir():
        return []
    return [Path(entry.path) for entry in os.scandir(root) if _TEMPORARY.fullmatch(entry.name)]


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Manifest of a checkpoint and its digest. Raises BadCheckpoint."""
    try:
        raw = read_plain(folder / MANIFEST)
        manifest = Manifest.model_validate_json(raw)
    except OSError as error:
        raise BadCheckpoint(f"{MANIFEST}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise BadCheckpoint(f"{MANIFEST}: {where}: {first['msg']}") from error
    expected = {shard_name(rank) for rank in range(manifest.world_size)}
    if manifest.files.keys() != expected:
        raise BadCheckpoint(f"{MANIFEST}: expected {len(expected)} shards, found {sorted(manifest.files)}")
    if folder_name(manifest.step) != folder.name:
        raise BadCheckpoint(f"{MANIFEST}: is of step {manifest.step}, but the folder is {folder.name}")
    return manifest, hashlib.sha256(raw).hexdigest()


def verify(folder: Path, name: str, expected: File) -> None:
    """Compare a file with its entry in the manifest. Raises BadCheckpoint."""
    if not _SHARD.fullmatch(name):
        raise BadCheckpoint(f"{name!r} is no name of a shard")
    digest = hashlib.sha256()
    try:
        with open_plain(folder / name) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected.size:
                raise BadCheckpoint(f"{name}: expected {expected.size} bytes, found {size}")
            while chunk := file.read(8 << 20):
                digest.update(chunk)
    except OSError as error:
        raise BadCheckpoint(f"{name}: {error.strerror}") from error
    if digest.hexdigest() != expected.sha256:
        raise BadCheckpoint(f"{name}: the SHA-256 is not the one in the manifest")


def open_plain(path: Path) -> Any:
    """Open a regular file for reading. A link is refused: it could lead out of the job's folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_plain(path: Path) -> bytes:
    """Content of a regular file. Raises OSError."""
    with open_plain(path) as file:
        content: bytes = file.read()
    return content


def reference(root: Path, manifest: Manifest, digest: str) -> CheckpointRef:
    """A committed checkpoint, as status and logs name it."""
    return CheckpointRef(
        step=manifest.step,
        path=f"{root.name}/{folder_name(manifest.step)}",
        digest=digest,
        attempt=manifest.attempt,
        time=manifest.time,
    )
