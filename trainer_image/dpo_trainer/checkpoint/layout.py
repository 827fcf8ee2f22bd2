"""Folders and names on the volume.

checkpoints/attempt                        number of the newest attempt that began: the fence
checkpoints/step-00000050/manifest.json    written last; it names every other file with its SHA-256
checkpoints/step-00000050/rank-00000.safetensors
checkpoints/step-00000050.attempt-2.tmp    being written, or left by a crash
checkpoints/step-00000050.attempt-2.removed.tmp    taken from its writer by a newer attempt, being removed
"""

import os
import re
from pathlib import Path

from dpo_trainer.checkpoint.plain_files import read_plain, sanitized
from dpo_trainer.runtime.errors import volume_error

FENCE = "attempt"
_FOLDER = re.compile(r"step-(\d{8,12})")
TEMPORARY = re.compile(r"step-\d{8,12}\.(?:attempt-(\d+)|replaced)(?:\.removed)?\.tmp")
SHARD = re.compile(r"rank-\d{5}\.safetensors")


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

    By name only; links and files are refused when they are read.
    Raises OSError.
    """
    found = [(int(match[1]), path) for path in _entries(root) if (match := _FOLDER.fullmatch(path.name))]
    return sorted(found, reverse=True)


def temporary_folders(root: Path) -> list[Path]:
    """Folders that a crash or a failed save left. Raises OSError."""
    return [path for path in _entries(root) if TEMPORARY.fullmatch(path.name)]


def removed_name(temporary: str) -> str:
    """Name under which a newer attempt removes a temporary folder. Idempotent."""
    return f"{temporary.removesuffix('.tmp').removesuffix('.removed')}.removed.tmp"


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
            f"{root / FENCE}: expected the number of an attempt, found {sanitized(text)!r}. When no older attempt of this job is "
            "running, delete that file"
        )
    return int(text)
