"""What is on the volume: folders, names and the manifest.

checkpoints/attempt                        number of the newest attempt that began: the fence
checkpoints/step-00000050/manifest.json    written last; it names every other file with its SHA-256
checkpoints/step-00000050/rank-00000.safetensors
checkpoints/step-00000050.attempt-2.tmp    being written, or left by a crash
checkpoints/step-00000050.attempt-2.removed.tmp    taken from its writer by a newer attempt, and being removed
"""

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dpo_operator.api.reports import CheckpointRef
from dpo_trainer.runtime.errors import volume_error

FENCE = "attempt"
MANIFEST = "manifest.json"
_FOLDER = re.compile(r"step-(\d{8,12})")
_TEMPORARY = re.compile(r"step-\d{8,12}\.(?:attempt-(\d+)|replaced)(?:\.removed)?\.tmp")
_SHARD = re.compile(r"rank-\d{5}\.safetensors")
# 100,000 parameters and as many shards fit; what is larger is not read into memory.
MAX_MANIFEST_BYTES = 32 << 20
MAX_WORLD_SIZE = 100_000
# Errors that say that the volume is gone or the process has no more files or memory, not that a file is bad: an older checkpoint
# would be no better, and the newest may be good.
_NOT_OF_THE_FILE = frozenset(
    {
        errno.ENOTCONN, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
        errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    }
)  # fmt: skip
# Larger numbers are not the same in every program that reads JSON.
_Count = Annotated[int, Field(ge=0, le=2**53)]


class BadCheckpoint(Exception):
    """A checkpoint can't be trusted; the message says why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Parameter(_Part):
    """A trained parameter as a whole. dtype: of the model, such as bfloat16; what is stored is always float32."""

    shape: tuple[_Count, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


class File(_Part):
    """A file of the checkpoint, in bytes and SHA-256 hex."""

    size: _Count
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(_Part):
    """Everything that is needed to go on, apart from the tensors.

    identity: what must be equal for the run to be the same one, as path -> value.
    adam_step: updates that the optimizer has counted, for its bias correction.
    state: the loop's own: data cursor and what else it needs. metrics: TRL's keys, eval_ for evaluations.
    """

    format: Literal[1] = 1
    step: _Count
    attempt: int = Field(ge=1, le=2**53)
    world_size: int = Field(ge=1, le=MAX_WORLD_SIZE)
    time: float
    identity: dict[str, Any]
    parameters: dict[str, Parameter]
    adam_step: _Count
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
    """Steps and folders of committed checkpoints, newest first.

    Only names are looked at: what is no folder, such as a link, is refused with its reason when it is read.
    Raises OSError.
    """
    found = [(int(match[1]), path) for path in _entries(root) if (match := _FOLDER.fullmatch(path.name))]
    return sorted(found, reverse=True)


def temporary_folders(root: Path) -> list[Path]:
    """Folders that a crash or a failed save left. Raises OSError."""
    return [path for path in _entries(root) if _TEMPORARY.fullmatch(path.name)]


def removed_name(temporary: str) -> str:
    """Name under which a newer attempt removes a temporary folder; of one that has such a name already, the same."""
    return f"{temporary.removesuffix('.tmp').removesuffix('.removed')}.removed.tmp"


def attempt_of(folder: Path) -> int:
    """Attempt that wrote a checkpoint or a temporary folder; 0 when nothing readable says it. Raises OSError."""
    if match := _TEMPORARY.fullmatch(folder.name):
        return int(match[1] or 0)
    try:
        return read_manifest(folder)[0].attempt
    except BadCheckpoint:
        return 0


def _entries(root: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(root)]
    except FileNotFoundError:
        return []


def read_fence(root: Path) -> int:
    """Number of the newest attempt that began; 0 before the first. Raises TrainerError VOLUME_ERROR, OSError."""
    try:
        text = read_plain(root / FENCE, limit=64).decode(errors="replace").strip()
    except FileNotFoundError:
        return 0
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise volume_error(
            f"{root / FENCE}: expected the number of an attempt, found {shown(text)!r}. When no older attempt of this job is "
            "running, delete that file"
        )
    return int(text)


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Manifest of a checkpoint and its digest.

    Raises BadCheckpoint, and OSError when the volume as a whole does not answer.
    """
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise BadCheckpoint("is a link or a file, and no folder")
        raw = read_plain(folder / MANIFEST, limit=MAX_MANIFEST_BYTES)
        _check_json(raw)
        # Not lax: a number in quotes, which some programs take and others don't, was not written by this one.
        manifest = Manifest.model_validate_json(raw, strict=True)
    except OSError as error:
        raise unreadable(MANIFEST, error) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise BadCheckpoint(f"{MANIFEST}: {shown(where)}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{MANIFEST}: expected JSON, found {shown(str(error))}") from error
    if len(manifest.files) != manifest.world_size or any(
        shard_name(rank) not in manifest.files for rank in range(manifest.world_size)
    ):
        names = ", ".join(map(shown, sorted(manifest.files)[:3]))
        raise BadCheckpoint(
            f"{MANIFEST}: expected {manifest.world_size} shards, {shard_name(0)} and so on, found {len(manifest.files)}"
            f"{': ' if names else ''}{names}"
        )
    if folder_name(manifest.step) != folder.name:
        raise BadCheckpoint(f"{MANIFEST}: is of step {manifest.step}, but the folder is {folder.name}")
    return manifest, hashlib.sha256(raw).hexdigest()


def verify(folder: Path, name: str, expected: File, alive: Callable[[], None] = lambda: None) -> None:
    """Compare every byte of a file with its entry in the manifest. alive: called again and again as they are read.

    Raises BadCheckpoint, and OSError when the volume as a whole does not answer.
    """
    digest = hashlib.sha256()
    try:
        with _open_shard(folder, name, expected) as file:
            left = expected.size
            while left and (chunk := file.read(min(left, 8 << 20))):
                digest.update(chunk)
                left -= len(chunk)
                alive()
    except OSError as error:
        raise unreadable(name, error) from error
    if digest.hexdigest() != expected.sha256:
        raise BadCheckpoint(f"{name}: the SHA-256 is not the one in the manifest")


def verify_size(folder: Path, name: str, expected: File) -> None:
    """Compare a file's size alone with its entry in the manifest. Raises as verify does."""
    try:
        _open_shard(folder, name, expected).close()
    except OSError as error:
        raise unreadable(name, error) from error


def _open_shard(folder: Path, name: str, expected: File) -> BinaryIO:
    if not _SHARD.fullmatch(name):
        raise BadCheckpoint(f"{name!r} is no name of a shard")
    file = open_plain(folder / name)
    size = os.fstat(file.fileno()).st_size
    if size != expected.size:
        file.close()
        raise BadCheckpoint(f"{name}: expected {expected.size} bytes, found {size}")
    return file


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


def _check_json(raw: bytes) -> None:
    """Refuse what programs read differently: other encodings, a name that is there twice, NaN. Raises ValueError."""

    def unique(items: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in items:
            if name in seen:
                raise ValueError(f"{shown(name)} twice in one object")
            seen.add(name)

    def constant(text: str) -> None:
        raise ValueError(f"{text}, which is no number")

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{shown(text)}, which is too large a number")
        return value

    json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant, parse_float=finite)


def shown(text: str) -> str:
    """Text of a stranger, short and on one line."""
    text = text if len(text) <= 120 else text[:120] + "…"
    return text if text.isprintable() else ascii(text)


def reference(root: Path, manifest: Manifest, digest: str) -> CheckpointRef:
    """A committed checkpoint, as status and logs name it."""
    return CheckpointRef(
        step=manifest.step,
        path=f"{root.name}/{folder_name(manifest.step)}",
        digest=digest,
        attempt=manifest.attempt,
        time=manifest.time,
    )
