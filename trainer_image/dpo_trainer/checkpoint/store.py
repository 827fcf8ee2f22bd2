"""The protocol: who may write, how a checkpoint becomes one, which one a run goes on from, which ones stay.

A newer attempt fences an older one in this order: it writes its number, removes every temporary folder, and only then
looks which checkpoints there are. An older writer that still lives either renamed its folder before, and the newer
attempt sees that checkpoint, or finds its folder gone and fails.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import CheckpointRef
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.identity import differences
from dpo_trainer.checkpoint.layout import BadCheckpoint, File, Manifest
from dpo_trainer.checkpoint.ranks import Ranks
from dpo_trainer.checkpoint.rng import rng_entries, set_rng
from dpo_trainer.checkpoint.shard import Entry, ShardReader, file_size, write_shard
from dpo_trainer.checkpoint.zero3 import Zero3State, partition
from dpo_trainer.errors import TrainerError, invalid_configuration, volume_error
from dpo_trainer.files import commit, sync_folder, write_synced
from dpo_trainer.versions import library_versions

# Room that must be left after a save, for the manifest and other writers' small files.
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Restored:
    """What a run goes on from.

    refused: newer checkpoints that could not be used, each with its reason.
    """

    ref: CheckpointRef
    state: dict[str, Any]
    metrics: dict[str, float | None]
    refused: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self.ref.step


@dataclass
class Checkpoints:
    """The checkpoints of one job, as one attempt writes and reads them. All methods are collective.

    root: the folder of all checkpoints. identity: see identity.py. keep_best: kept besides, by metrics["selection"].
    observe: told the name of every sub-step of a save as it is reached; for progress, and for tests that kill there.
    """

    root: Path
    attempt: int
    identity: Mapping[str, Any]
    keep_last: int = 2
    keep_best: int = 1
    ranks: Ranks = field(default_factory=Ranks)
    observe: Callable[[str], None] = lambda _: None
    _newest: CheckpointRef | None = None

    def begin(self) -> None:
        """Fence older attempts and remove what they left half-written.

        Raises TrainerError PEER_LOST when a newer attempt has begun.
        """
        self.ranks.on_first(self._begin)

    def save(
        self, state: Zero3State, *, step: int, loop: Mapping[str, Any], metrics: Mapping[str, float | None]
    ) -> CheckpointRef:
        """Commit a checkpoint of the current weights after `step` optimizer steps.

        loop: JSON, the loop's own state; rank 0's is kept. Raises TrainerError on every rank when it fails on one;
        then the temporary folder is gone and the older checkpoints are as they were. A step that is already committed
        is not written again.
        """
        if self._newest is not None and self._newest.step == step:
            return self._newest
        entries = [*state.entries(), *rng_entries()]
        temporary = self.root / layout.temporary_name(step, self.attempt)
        sizes = self.ranks.everywhere(lambda: file_size(entries))
        try:
            self.ranks.on_first(lambda: self._make_room(temporary, sum(sizes)))
            files = self.ranks.everywhere(lambda: self._write_shard(temporary, entries))
            self.observe("digests-gathered")
            manifest = Manifest(
                step=step,
                attempt=self.attempt,
                world_size=self.ranks.world_size,
                time=time.time(),
                identity=dict(self.identity),
                parameters=state.parameters(),
                adam_step=state.adam_step(),
                files={layout.shard_name(rank): File(**file) for rank, file in enumerate(files)},
                state=dict(loop),
                metrics=dict(metrics),
                versions=library_versions(),
            )
            ref = self.ranks.on_first(lambda: self._commit(temporary, manifest))
        except TrainerError:
            if self.ranks.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._newest = CheckpointRef(**ref)
        return self._newest

    def amend(self, *, loop: Mapping[str, Any], metrics: Mapping[str, float | None]) -> CheckpointRef:
        """Replace what the newest checkpoint says of the loop, in one step; its tensors stay as they are.

        Raises TrainerError on every rank when it fails.
        """
        self._newest = CheckpointRef(**self.ranks.on_first(lambda: self._amend(loop, metrics)))
        return self._newest

    def load(self, state: Zero3State) -> Restored | None:
        """Set the engine to the newest checkpoint that is whole; None when there is none at all.

        Raises TrainerError INVALID_CONFIGURATION when it belongs to other settings, VOLUME_ERROR when there are
        checkpoints and none of them is whole: starting anew would throw away the work in them.
        """
        steps = self.ranks.on_first(lambda: [step for step, _ in layout.committed(self.root)])
        refused: list[str] = []
        for step in steps:
            folder = self.root / layout.folder_name(step)
            found = self.ranks.everywhere(lambda folder=folder: self._inspect(folder, state))  # type: ignore[misc]
            reasons = [answer["reason"] for answer in found if answer["reason"]]
            if not reasons and len({answer["digest"] for answer in found}) > 1:
                reasons = ["the ranks read different manifests"]
            if reasons:
                refused.append(f"{folder.name}: {reasons[0]}")
                continue
            self.ranks.everywhere(lambda folder=folder: self._restore(folder, state))  # type: ignore[misc]
            manifest, digest = layout.read_manifest(folder)
            self._newest = layout.reference(self.root, manifest, digest)
            return Restored(self._newest, manifest.state, manifest.metrics, tuple(refused))
        if refused:
            raise volume_error(
                f"None of the {len(refused)} checkpoints in {self.root} is whole: {'; '.join(refused)}. Restore one from a "
                "backup, or delete that folder to train from the start."
            )
        return None

    def _begin(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self._check_fence()
        fence = self.root / layout.FENCE
        temporary = fence.with_suffix(f".{self.attempt}.tmp")
        write_synced(temporary, f"{self.attempt}\n".encode())
        temporary.replace(fence)
        sync_folder(self.root)
        for folder in layout.temporary_folders(self.root):
            shutil.rmtree(folder)

    def _check_fence(self) -> None:
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

    def _make_room(self, temporary: Path, needed: int) -> None:
        self.observe("space-checked")
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
        self.observe("folder-made")

    def _write_shard(self, temporary: Path, entries: list[Entry]) -> dict[str, Any]:
        path = temporary / layout.shard_name(self.ranks.rank)
        file = write_shard(path, entries, self.observe)
        sync_folder(temporary)
        return file.model_dump()

    def _commit(self, temporary: Path, manifest: Manifest) -> dict[str, Any]:
        content = manifest.to_bytes()
        write_synced(temporary / layout.MANIFEST, content)
        sync_folder(temporary)
        self.observe("manifest-synced")
        self._check_fence()
        self.observe("fence-checked")
        target = self.root / layout.folder_name(manifest.step)
        if target.exists():
            # Only a checkpoint that was refused at the start is ever written again.
            replaced = self.root / f"{target.name}.replaced.tmp"
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        temporary.rename(target)
        self.observe("renamed")
        sync_folder(self.root)
        self.observe("committed")
        self._retain(manifest.step)
        self.observe("old-removed")
        return layout.reference(self.root, manifest, hashlib.sha256(content).hexdigest()).model_dump()

    def _amend(self, loop: Mapping[str, Any], metrics: Mapping[str, float | None]) -> dict[str, Any]:
        assert self._newest is not None, "there is a checkpoint to amend"
        folder = self.root / layout.folder_name(self._newest.step)
        manifest, _ = layout.read_manifest(folder)
        changes = {"attempt": self.attempt, "time": time.time(), "state": dict(loop), "metrics": dict(metrics)}
        manifest = manifest.model_copy(update=changes)
        content = manifest.to_bytes()
        self._check_fence()
        commit(folder / layout.MANIFEST, content)
        self._retain(manifest.step)
        return layout.reference(self.root, manifest, hashlib.sha256(content).hexdigest()).model_dump()

    def _retain(self, newest: int) -> None:
        """Remove what need not stay. The checkpoint that was just committed always stays."""
        found = layout.committed(self.root)
        keep = retained({step: _selection(folder) for step, folder in found}, newest, self.keep_last, self.keep_best)
        for folder in [folder for step, folder in found if step not in keep] + layout.temporary_folders(self.root):
            shutil.rmtree(folder, ignore_errors=True)

    def _inspect(self, folder: Path, state: Zero3State) -> dict[str, Any]:
        """Digest of the manifest when all that this rank needs is whole, else the reason why not."""
        try:
            manifest, digest = layout.read_manifest(folder)
            self._check_identity(folder, manifest, state)
            for name in sorted(self._needed(manifest)):
                layout.verify(folder, name, manifest.files[name])
        except BadCheckpoint as error:
            return {"reason": str(error), "digest": None}
        return {"reason": None, "digest": digest}

    def _check_identity(self, folder: Path, manifest: Manifest, state: Zero3State) -> None:
        problems = differences(manifest.identity, dict(self.identity))
        now = state.parameters()
        for name in sorted(manifest.parameters.keys() | now.keys()):
            saved, expected = manifest.parameters.get(name), now.get(name)
            if saved is None or expected is None or saved.shape != expected.shape:
                shapes = [part.shape if part else "nothing" for part in (saved, expected)]
                problems.append(f"parameter {name}: the checkpoint has {shapes[0]}, the model {shapes[1]}")
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise invalid_configuration(
                f"{folder.name} belongs to other settings: {'; '.join(problems[:5])}{more}. Undo the change, or use "
                "another work folder."
            )

    def _needed(self, manifest: Manifest) -> set[str]:
        """Shards that this rank reads. All ranks together read, and so verify, every one that holds anything."""
        if manifest.world_size == self.ranks.world_size:
            return {layout.shard_name(self.ranks.rank)}
        ranks: set[int] = set()
        for parameter in manifest.parameters.values():
            start, end = partition(parameter.numel, self.ranks.rank, self.ranks.world_size)
            ranks.update(r for r, _, _ in pieces(parameter.numel, start, end, manifest.world_size))
        return {layout.shard_name(rank) for rank in ranks}

    def _restore(self, folder: Path, state: Zero3State) -> None:
        manifest, _ = layout.read_manifest(folder)
        readers = {name: ShardReader(folder / name) for name in self._needed(manifest)}

        def read(kind: str, name: str, start: int, end: int) -> torch.Tensor:
            parts = pieces(manifest.parameters[name].numel, start, end, manifest.world_size)
            found = [readers[layout.shard_name(r)].slice(f"{kind}/{name}", a, b) for r, a, b in parts]
            return torch.cat(found)

        try:
            state.restore(read, manifest.adam_step)
            own = readers.get(layout.shard_name(self.ranks.rank))
            same = manifest.world_size == self.ranks.world_size
            set_rng(own if same else None, seed=f"{manifest.step}/{self.ranks.rank}")
        except BadCheckpoint as error:
            raise volume_error(f"{folder.name}: {error}, although its digests are right") from error


def pieces(numel: int, start: int, end: int, world_size: int) -> list[tuple[int, int, int]]:
    """Where elements [start, end) of a parameter are in a checkpoint of world_size ranks.

    Returns (rank, first, last) with [first, last) counted in that rank's slice, in order.
    """
    found = []
    for rank in range(world_size):
        low, high = partition(numel, rank, world_size)
        first, last = max(start, low), min(end, high)
        if first < last:
            found.append((rank, first - low, last - low))
    return found


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
