"""How a checkpoint becomes one: room, shards, manifest, rename, retention. No engine, no loop."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import CheckpointRef
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.layout import BadCheckpoint, File, Manifest
from dpo_trainer.checkpoint.ranks import Ranks
from dpo_trainer.checkpoint.shard import Entry, file_size, write_shard
from dpo_trainer.errors import TrainerError, volume_error
from dpo_trainer.files import commit, sync_folder, write_synced

# Room that must be left after a save, for the manifest and other writers' small files.
_SPARE_BYTES = 1 << 20


@dataclass
class Writer:
    """Writes the checkpoints of one attempt. `write` is collective over ranks; the other methods are one process's own.

    observe: told the step and the name of every sub-step of a save as it is reached; tests kill there.
    before_commit: called on rank 0 when all shards are on the disk, before the checkpoint becomes one.
    """

    root: Path
    attempt: int
    keep_last: int = 2
    keep_best: int = 1
    ranks: Ranks = field(default_factory=Ranks)
    observe: Callable[[int, str], None] = lambda _step, _point: None
    before_commit: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Fence older attempts and remove what they left half-written. Raises TrainerError PEER_LOST, OSError."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.check_fence()
        fence = self.root / layout.FENCE
        temporary = fence.with_suffix(f".{self.attempt}.tmp")
        write_synced(temporary, f"{self.attempt}\n".encode())
        temporary.replace(fence)
        sync_folder(self.root)
        for folder in layout.temporary_folders(self.root):
            shutil.rmtree(folder)

    def write(self, entries: Sequence[Entry], manifest: Manifest) -> CheckpointRef:
        """Write and commit a checkpoint. Collective.

        entries: of this rank. manifest: without its files. Raises TrainerError on every rank when it fails on one;
        then the temporary folder is gone and the older checkpoints are as they were.
        """
        temporary = self.root / layout.temporary_name(manifest.step, self.attempt)
        sizes = self.ranks.everywhere(lambda: file_size(entries))
        try:
            self.ranks.on_first(lambda: self.make_room(temporary, sum(sizes), manifest.step))
            files = self.ranks.everywhere(lambda: self.write_shard(temporary, entries, manifest.step))
            self.observe(manifest.step, "digests-gathered")
            named = {layout.shard_name(rank): File(**file) for rank, file in enumerate(files)}
            whole = manifest.model_copy(update={"files": named})
            return CheckpointRef(**self.ranks.on_first(lambda: self.commit(temporary, whole)))
        except TrainerError:
            if self.ranks.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def make_room(self, temporary: Path, needed: int, step: int) -> None:
        """Make the temporary folder when the volume has room for so many bytes. Raises TrainerError VOLUME_ERROR, OSError."""
        self.observe(step, "space-checked")
        disk = os.statvfs(self.root)
        free = disk.f_bavail * disk.f_frsize
        # Some network file systems report no sizes at all.
        if disk.f_blocks > 0 and free < needed + _SPARE_BYTES:
            raise volume_error(
                f"A checkpoint needs {_gib(needed)}, but only {_gib(free)} are free on the volume. Enlarge it, or lower "
                "checkpoint.keepLast or checkpoint.keepBest; the older checkpoints are untouched."
            )
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        self.observe(step, "folder-made")

    def write_shard(self, temporary: Path, entries: Sequence[Entry], step: int) -> dict[str, Any]:
        """Write this rank's file; its entry in the manifest. Raises TrainerError NON_FINITE, OSError."""
        path = temporary / layout.shard_name(self.ranks.rank)
        file = write_shard(path, entries, partial(self.observe, step))
        sync_folder(temporary)
        return file.model_dump()

    def commit(self, temporary: Path, manifest: Manifest) -> dict[str, Any]:
        """Make the temporary folder the checkpoint; what it is called from now on. Raises TrainerError PEER_LOST, OSError."""
        self.before_commit()
        content = manifest.to_bytes()
        write_synced(temporary / layout.MANIFEST, content)
        sync_folder(temporary)
        self.observe(manifest.step, "manifest-synced")
        self.check_fence()
        self.observe(manifest.step, "fence-checked")
        target = self.root / layout.folder_name(manifest.step)
        if target.exists():
            # Only a checkpoint that was refused at the start is ever written again.
            replaced = self.root / f"{target.name}.replaced.tmp"
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        temporary.rename(target)
        self.observe(manifest.step, "renamed")
        sync_folder(self.root)
        self.observe(manifest.step, "committed")
        self.retain(manifest.step)
        self.observe(manifest.step, "old-removed")
        return layout.reference(self.root, manifest, hashlib.sha256(content).hexdigest()).model_dump()

    def amend(self, step: int, loop: Mapping[str, Any], metrics: Mapping[str, float | None]) -> dict[str, Any]:
        """Replace what a checkpoint says of the loop. Raises TrainerError PEER_LOST, OSError."""
        folder = self.root / layout.folder_name(step)
        manifest, _ = layout.read_manifest(folder)
        changes = {"attempt": self.attempt, "time": time.time(), "state": dict(loop), "metrics": dict(metrics)}
        manifest = manifest.model_copy(update=changes)
        content = manifest.to_bytes()
        self.check_fence()
        commit(folder / layout.MANIFEST, content)
        self.retain(manifest.step)
        return layout.reference(self.root, manifest, hashlib.sha256(content).hexdigest()).model_dump()

    def retain(self, newest: int) -> None:
        """Remove what need not stay. The checkpoint that was just committed always stays."""
        found = layout.committed(self.root)
        keep = retained({step: _selection(folder) for step, folder in found}, newest, self.keep_last, self.keep_best)
        for folder in [folder for step, folder in found if step not in keep] + layout.temporary_folders(self.root):
            shutil.rmtree(folder, ignore_errors=True)

    def check_fence(self) -> None:
        """Raises TrainerError PEER_LOST when a newer attempt has begun."""
        try:
            text = layout.read_plain(self.root / layout.FENCE).decode().strip()
        except FileNotFoundError:
            return
        if not text.isdecimal():
            raise volume_error(f"{self.root / layout.FENCE}: expected the number of an attempt, found {text[:40]!r}")
        if int(text) > self.attempt:
            raise TrainerError(
                ExitCode.PEER_LOST, f"Attempt {int(text)} has begun, so attempt {self.attempt} may no longer write."
            )


def retained(costs: Mapping[int, float | None], newest: int, keep_last: int, keep_best: int) -> set[int]:
    """Steps of the checkpoints that stay.

    costs: evaluation result by step, less is better, None where there was no evaluation. newest: the one that was just committed; later
    ones were refused when this attempt began, or it would have gone on from them, so they go.
    """
    usable = {step: cost for step, cost in costs.items() if step <= newest}
    last = sorted(usable, reverse=True)[: max(1, keep_last)]
    # Of equal ones the later one: it has seen more.
    best = sorted((cost, -step) for step, cost in usable.items() if cost is not None)[:keep_best]
    return {newest, *last, *(-step for _, step in best)}


def _selection(folder: Path) -> float | None:
    try:
        return layout.read_manifest(folder)[0].metrics.get("selection")
    except BadCheckpoint:
        return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
