"""Folders and names on the volume.

checkpoints/attempt-2                      attempt 2 has begun: the newest of these is the fence
checkpoints/attempt                        the same number in a file, as older images and people read it
checkpoints/skipped.json                   steps that training.nonFinite skipped before it rolled back
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
SKIPPED = "skipped.json"
_MARK = re.compile(r"attempt-(\d{1,18})", re.ASCII)
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


def mark_name(attempt: int) -> str:
    """Name of the file that says that an attempt has begun."""
    return f"{FENCE}-{attempt}"


def marks(root: Path) -> list[int]:
    """Attempts that have begun, oldest first, as far as their marks are kept. Raises OSError."""
    return sorted(int(match[1]) for path in _entries(root) if (match := _MARK.fullmatch(path.name)))


def read_fence(root: Path) -> int:
    """Number of the newest attempt that began; 0 before the first. Raises TrainerError VOLUME_ERROR, OSError.

    No attempt overwrites another one's mark, so this never falls, also when two attempts begin at one instant.
    """
    return max([_read_number(root), *marks(root)])


def _read_number(root: Path) -> int:
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
