"""Commit protocol: free space, shards, manifest, rename, retention. No engine, no loop."""

import hashlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import CheckpointRef
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.loop_state import LoopState
from dpo_trainer.checkpoint.manifest import MANIFEST, File, Manifest, attempt_of, read_manifest, reference
from dpo_trainer.checkpoint.shard import Entry, file_size, write_shard
from dpo_trainer.checkpoint.verification import retained, usable_costs
from dpo_trainer.checkpoint.volume import check_free_space, volume_errors_explained
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.files import commit, remove, sync_folder, write_synced

T = TypeVar("T")

# Attempts whose marks are kept.
KEPT_MARKS = 10


@dataclass
class Writer:
    """Writes the checkpoints of one attempt. `write` is collective over ranks; the other methods run on a single rank.

    observe: called with the step and the name of each sub-step of a save, for fault injection.
    alive: called after each part that was written or removed.
    refused: steps of checkpoints that a load refused; they don't count for retention.
    before_commit: called on rank 0 when all shards are on the disk, before the commit.
    """

    root: Path
    attempt: int
    keep_last: int = 2
    keep_best: int = 1
    ranks: Ranks = field(default_factory=Ranks)
    observe: Callable[[int, str], None] = lambda _step, _point: None
    before_commit: Callable[[], None] = lambda: None
    refused: frozenset[int] = frozenset()
    alive: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Fence older attempts and remove what they left half-written. Raises TrainerError PEER_LOST, OSError."""
        self.root.mkdir(parents=True, exist_ok=True)
        sync_folder(self.root.parent)
        fence = self.root / layout.FENCE
        if os.path.lexists(fence) and not stat.S_ISREG(fence.lstat().st_mode):
            remove(fence)  # invalid fence: it would block all attempts
        self.check_fence()
        self._mark()
        # An older attempt that stalled right here overwrites a newer one's number, and not its mark.
        temporary = fence.with_suffix(f".{self.attempt}.tmp")
        remove(temporary)
        write_synced(temporary, f"{self.attempt}\n".encode())
        temporary.replace(fence)
        sync_folder(self.root)
        self.check_fence()
        self._take_over(layout.temporary_folders(self.root))

    def _mark(self) -> None:
        """Say that this attempt has begun. The newest marks stay: a reader that lists the folder meanwhile finds one of them."""
        with suppress(FileExistsError):  # this attempt has begun before
            write_synced(self.root / layout.mark_name(self.attempt), b"")
        sync_folder(self.root)
        for attempt in layout.marks(self.root)[:-KEPT_MARKS]:
            remove(self.root / layout.mark_name(attempt))

    def _take_over(self, folders: Sequence[Path]) -> None:
        """Remove temporary folders. The rename first keeps an older writer from committing a half-removed folder."""
        ours = [folder for folder in folders if attempt_of(folder) <= self.attempt]
        removed = {self.root / layout.removed_name(folder.name) for folder in ours}
        for folder in removed:
            remove(folder)  # left by an interrupted take-over
        for folder in ours:
            with suppress(FileNotFoundError):  # already removed, here or by its writer
                folder.rename(self.root / layout.removed_name(folder.name))
        sync_folder(self.root)
        for folder in removed:
            remove(folder)

    def write(self, entries: Sequence[Entry], manifest: Manifest) -> CheckpointRef:
        """Write and commit a checkpoint. Collective.

        entries: of this rank. manifest: without its files. Raises TrainerError on every rank when it fails on one;
        then the temporary folder is gone and the older checkpoints are as they were.
        """
        temporary = self.root / layout.temporary_name(manifest.step, self.attempt)
        sizes = self.ranks.run_on_all(lambda: file_size(entries))
        try:
            needed = sum(sizes)
            self.ranks.run_on_rank_zero(
                lambda: self.saving(needed, lambda: self.make_folder(temporary, needed, manifest.step))
            )
            files = self.ranks.run_on_all(
                lambda: self.saving(needed, lambda: self.write_shard(temporary, entries, manifest.step))
            )
            self.observe(manifest.step, "digests-gathered")
            named = {layout.shard_name(rank): File(**file) for rank, file in enumerate(files)}
            whole = manifest.model_copy(update={"files": named})
            return CheckpointRef(
                **self.ranks.run_on_rank_zero(lambda: self.saving(needed, lambda: self.commit(temporary, whole)))
            )
        except TrainerError:
            if self.ranks.rank == 0:
                remove(temporary)
            raise

    def saving(self, needed: int, work: Callable[[], T]) -> T:
        """Run a part of a save; volume errors become TrainerErrors with advice. needed: bytes of the whole checkpoint."""
        with volume_errors_explained(self.root, needed, self.check_fence):
            return work()

    def make_folder(self, temporary: Path, needed: int, step: int) -> None:
        """Make the temporary folder if the volume has free space for the checkpoint. needed: bytes.

        If space is short, refused and surplus checkpoints are deleted first.
        Raises TrainerError VOLUME_ERROR, PEER_LOST, OSError.
        """
        self.observe(step, "space-checked")
        try:
            check_free_space(self.root, needed)
        except TrainerError:
            self.check_fence()
            if usable := usable_costs(layout.committed(self.root), self.refused):
                self.retain(max(usable))
            check_free_space(self.root, needed)
        remove(temporary)
        temporary.mkdir()
        self.observe(step, "folder-made")

    def write_shard(self, temporary: Path, entries: Sequence[Entry], step: int) -> dict[str, Any]:
        """Write this rank's file; its entry in the manifest. Raises TrainerError NON_FINITE, OSError."""
        path = temporary / layout.shard_name(self.ranks.rank)
        file = write_shard(path, entries, partial(self.observe, step), self.alive)
        sync_folder(temporary)
        return file.model_dump()

    def commit(self, temporary: Path, manifest: Manifest) -> dict[str, Any]:
        """Commit the temporary folder; returns the fields of its reference. Raises TrainerError PEER_LOST, OSError."""
        self.before_commit()
        content = manifest.to_bytes()
        write_synced(temporary / MANIFEST, content)
        sync_folder(temporary)
        self.observe(manifest.step, "manifest-synced")
        self.check_fence()
        self.observe(manifest.step, "fence-checked")
        target = self.root / layout.folder_name(manifest.step)
        if os.path.lexists(target):
            # Only a checkpoint that was refused at the start is ever overwritten. It can be a dangling link.
            replaced = self.root / f"{target.name}.replaced.tmp"
            remove(replaced)
            target.rename(replaced)
        temporary.rename(target)
        self.observe(manifest.step, "renamed")
        sync_folder(self.root)
        self.observe(manifest.step, "committed")
        self.retain(manifest.step)
        self.observe(manifest.step, "old-removed")
        return reference(self.root, manifest, hashlib.sha256(content).hexdigest()).model_dump()

    def amend(self, step: int, loop: LoopState) -> dict[str, Any]:
        """Replace the loop state of a checkpoint. Raises TrainerError PEER_LOST, OSError."""
        folder = self.root / layout.folder_name(step)
        manifest, _ = read_manifest(folder)
        changes = {"attempt": self.attempt, "time": time.time(), "state": loop, "metrics": loop.metrics()}
        manifest = manifest.model_copy(update=changes)
        content = manifest.to_bytes()
        self.check_fence()
        commit(folder / MANIFEST, content)
        self.retain(manifest.step)
        return reference(self.root, manifest, hashlib.sha256(content).hexdigest()).model_dump()

    def retain(self, newest: int) -> None:
        """Delete surplus checkpoints and temporary folders; the newest checkpoint stays.

        Never deletes a newer attempt's checkpoints: this process may have been stalled since its commit.
        """
        try:
            self.check_fence()
            found, left_over = layout.committed(self.root), layout.temporary_folders(self.root)
            costs = usable_costs(found, self.refused - {newest})
        except (OSError, TrainerError):
            return  # fenced, or the volume does not respond: unreadable checkpoints may be good, so keep them until the next save
        keep = {layout.folder_name(step) for step in retained(costs, newest, self.keep_last, self.keep_best)}
        for folder in [folder for _, folder in found if folder.name not in keep] + left_over:
            try:
                self.check_fence()
                is_newer = attempt_of(folder) > self.attempt
            except (OSError, TrainerError):
                return
            if not is_newer:
                remove(folder)
                self.alive()

    def check_fence(self) -> None:
        """Raises TrainerError PEER_LOST when a newer attempt has begun."""
        if (newest := layout.read_fence(self.root)) > self.attempt:
            raise TrainerError(
                ExitCode.PEER_LOST, f"Attempt {newest} has begun, so attempt {self.attempt} may no longer write."
            )
