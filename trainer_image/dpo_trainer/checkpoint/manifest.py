"""The manifest of a checkpoint: what it holds, checked by types and bounds."""

import hashlib
import json
import math
import re
import stat
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from dpo_operator.api.reports import CheckpointRef
from dpo_trainer.checkpoint.layout import TEMPORARY, committed, folder_name, shard_name
from dpo_trainer.checkpoint.loop_state import SELECTION, Count, LoopState, Part
from dpo_trainer.checkpoint.plain_files import BadCheckpoint, read_plain, sanitized, unreadable

MANIFEST = "manifest.json"
# 100,000 parameters and as many shards fit; a larger file is not read into memory.
MAX_MANIFEST_BYTES = 32 << 20
MAX_WORLD_SIZE = 100_000


class Parameter(Part):
    """A trained parameter as a whole. dtype: the model's, such as bfloat16; shards always hold float32."""

    shape: tuple[Count, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


class File(Part):
    """A file of the checkpoint, in bytes and SHA-256 hex."""

    size: Count
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Part):
    """Everything needed to resume except tensors.

    identity: path -> value of the settings that must match, see identity.py.
    adam_step: updates that the optimizer has counted, for its bias correction.
    state: training-loop state. metrics: see LoopState.metrics.
    """

    format: Literal[1] = 1
    step: Count
    attempt: int = Field(ge=1, le=2**53)
    world_size: int = Field(ge=1, le=MAX_WORLD_SIZE)
    time: float
    identity: dict[str, Any]
    parameters: dict[str, Parameter]
    adam_step: Count
    files: dict[str, File]
    state: LoopState
    metrics: dict[str, float | None]
    versions: dict[str, str]

    @property
    def selection_cost(self) -> float | None:
        """Cost of the evaluation, less is better; None without one."""
        return self.metrics.get(SELECTION)

    def to_bytes(self) -> bytes:
        """The file's content; its SHA-256 is the checkpoint's digest."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, allow_nan=False).encode()


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Manifest of a checkpoint and its digest.

    Raises BadCheckpoint, and OSError when the volume as a whole does not answer.
    """
    content = read_content(folder)
    return parse_manifest(content, folder.name), hashlib.sha256(content).hexdigest()


def read_content(folder: Path) -> bytes:
    """Content of a checkpoint's manifest. Raises as read_manifest does."""
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise BadCheckpoint("is a link or a file, and no folder")
        return read_plain(folder / MANIFEST, limit=MAX_MANIFEST_BYTES)
    except OSError as error:
        raise unreadable(MANIFEST, error) from error


def parse_manifest(content: bytes, name: str) -> Manifest:
    """The manifest of a checkpoint in a folder of this name. Raises BadCheckpoint."""
    try:
        _check_json(content)
        # Strict mode: this trainer never writes numbers as strings.
        manifest = Manifest.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise BadCheckpoint(f"{MANIFEST}: {sanitized(where)}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{MANIFEST}: expected JSON, found {sanitized(str(error))}") from error
    if len(manifest.files) != manifest.world_size or any(
        shard_name(rank) not in manifest.files for rank in range(manifest.world_size)
    ):
        names = ", ".join(map(sanitized, sorted(manifest.files)[:3]))
        raise BadCheckpoint(
            f"{MANIFEST}: expected {manifest.world_size} shards, {shard_name(0)} and so on, found {len(manifest.files)}"
            f"{': ' if names else ''}{names}"
        )
    if folder_name(manifest.step) != name:
        raise BadCheckpoint(f"{MANIFEST}: is of step {manifest.step}, but the folder is {name}")
    return manifest


def _check_json(raw: bytes) -> None:
    """Reject ambiguous JSON: other encodings, duplicate names, NaN. Raises ValueError."""

    def unique(items: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in items:
            if name in seen:
                raise ValueError(f"{sanitized(name)} twice in one object")
            seen.add(name)

    def constant(text: str) -> None:
        raise ValueError(f"{text}, which is no number")

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{sanitized(text)}, which is too large a number")
        return value

    json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant, parse_float=finite)


def reference(root: Path, manifest: Manifest, digest: str) -> CheckpointRef:
    """A committed checkpoint, as status and logs name it."""
    return CheckpointRef(
        step=manifest.step,
        path=f"{_place(root)}/{folder_name(manifest.step)}",
        digest=digest,
        attempt=manifest.attempt,
        time=manifest.time,
    )


def _place(root: Path) -> str:
    """Where a folder of checkpoints is in the work folder: those of a round, or a sweep's leg, are in its own folder."""
    leg = root.parent
    is_leg = leg.parent.name in ("rounds", "legs") and re.fullmatch(r"\d{4}", leg.name, re.ASCII)
    return f"{leg.parent.name}/{leg.name}/{root.name}" if is_leg else root.name


def attempt_of(folder: Path) -> int:
    """Attempt that wrote a checkpoint or a temporary folder; 0 if unknown. Raises OSError."""
    if match := TEMPORARY.fullmatch(folder.name):
        return int(match[1] or 0)
    try:
        return read_manifest(folder)[0].attempt
    except BadCheckpoint:
        return 0


def newest_state(checkpoints: Path) -> LoopState | None:
    """Loop state of the newest readable checkpoint in a folder of committed ones; None without one. Raises OSError."""
    for _, folder in committed(checkpoints):
        try:
            return read_manifest(folder)[0].state
        except BadCheckpoint:
            continue
    return None
