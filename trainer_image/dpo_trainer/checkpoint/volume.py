"""Error messages for volume failures during a save: what happened, where, how much space was needed, what to do."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dpo_trainer.runtime import volume_errors
from dpo_trainer.runtime.errors import volume_error
from dpo_trainer.runtime.volume_errors import Kind

# Free space that a save leaves, for the manifest and small files of others.
_SPARE_BYTES = 1 << 20
# On a cluster these settings are immutable, so only deleting checkpoints helps.
_KEEP_FEWER = "delete older checkpoints, or with `dpo run` lower checkpoint.keepLast or checkpoint.keepBest"
_REMEDIES = {
    Kind.FULL: f"enlarge the volume, remove other files from it, {_KEEP_FEWER}",
    Kind.QUOTA: f"raise the quota, {_KEEP_FEWER}",
    Kind.FILE_TOO_LARGE: "raise the limit on the size of a file",
}


@contextmanager
def volume_errors_explained(root: Path, needed: int, check_fence: Callable[[], None]) -> Iterator[None]:
    """Turn an OSError of a part of a save into TrainerError VOLUME_ERROR with the reason and the remedy.

    needed: bytes of the whole checkpoint; 0 when nothing large was written. check_fence: raises when a newer attempt has
    begun, which removes what an older one is writing.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            check_fence()
        raise volume_error(describe(error, root, needed, free_bytes(root))) from error


def check_free_space(root: Path, needed: int) -> None:
    """Raises TrainerError VOLUME_ERROR when less than `needed` bytes, and some to spare, are free."""
    free = free_bytes(root)
    if free is not None and free < needed + _SPARE_BYTES:
        raise volume_error(
            f"A checkpoint needs {readable(needed + _SPARE_BYTES)} (with {readable(_SPARE_BYTES)} to spare), but only "
            f"{readable(free)} are free at {root}: enlarge the volume, remove other files from it, {_KEEP_FEWER}. The newest "
            "checkpoint is untouched."
        )


def describe(error: OSError, root: Path, needed: int, free: int | None) -> str:
    """The message for an error of the volume. free: bytes, None if unknown."""
    untouched = "The checkpoints that were committed before are untouched."
    what = f"Saving a checkpoint in {root} failed: {error.strerror or error}"
    kind = volume_errors.kind(error)
    if kind in _REMEDIES:
        size = f" A checkpoint needs {readable(needed)}" if needed else " The folder needs some space"
        left = f", and now {readable(free)} are free there" if free is not None else ""
        return f"{what}.{size}{left}: {_REMEDIES[kind]}. {untouched}"
    if kind is Kind.READ_ONLY:
        return (
            f"{what}. The volume is mounted read-only; a kernel does that to a file system with errors. Look into the node's log "
            f"(dmesg), repair the volume or mount it for writing. {untouched}"
        )
    if isinstance(error, FileNotFoundError) or kind in (Kind.GONE, Kind.STALE):
        return f"{what}. The folder, or the volume that it is on, went away. Is it still mounted, and does its server respond?"
    if kind is Kind.FAILING:
        return (
            f"{what}. The storage behind the volume is failing or full. Look into the node's log (dmesg) and that of the storage. "
            f"{untouched}"
        )
    if kind is Kind.DENIED:
        return f"{what}. User {os.getuid()} may not write there; give the folder to that user. {untouched}"
    return f"{what}. {untouched}"


def free_bytes(root: Path) -> int | None:
    """Free space for this user, bytes. None on network file systems that report no sizes."""
    try:
        disk = os.statvfs(root)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize if disk.f_blocks > 0 else None


def readable(size: float) -> str:
    """12 B, 3.40 KiB, 5.67 MiB, 8.90 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
