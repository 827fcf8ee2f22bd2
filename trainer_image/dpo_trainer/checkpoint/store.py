"""The protocol: who may write, how a checkpoint becomes one, which one a run goes on from, which ones stay.

A newer attempt fences an older one in this order: it writes its number, removes every temporary folder, and only then
looks which checkpoints there are. An older writer that still lives either renamed its folder before, and the newer
attempt sees that checkpoint, or finds its folder gone and fails.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import CheckpointRef
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.layout import File, Manifest
from dpo_trainer.checkpoint.loading import Loader, Restored
from dpo_trainer.checkpoint.ranks import Ranks
from dpo_trainer.checkpoint.rng import rng_entries
from dpo_trainer.checkpoint.shard import Entry, file_size, write_shard
from dpo_trainer.checkpoint.trust import Trust
from dpo_trainer.checkpoint.verification import usable_costs
from dpo_trainer.checkpoint.volume import check_room, explained
from dpo_trainer.checkpoint.zero3 import Zero3State
from dpo_trainer.errors import TrainerError
from dpo_trainer.files import commit, remove, sync_folder, write_synced
from dpo_trainer.versions import library_versions

T = TypeVar("T")


@dataclass
class Checkpoints:
    """The checkpoints of one job, as one attempt writes and reads them. All methods are collective.

    root: the folder of all checkpoints. identity: see identity.py. keep_best: kept besides, by metrics["selection"].
    trust: what is known of the job's checkpoints from elsewhere; None takes any that is whole.
    observe: told the name of every sub-step of a save as it is reached; for progress, and for tests that kill there.
    """

    root: Path
    attempt: int
    identity: Mapping[str, Any]
    keep_last: int = 2
    keep_best: int = 1
    ranks: Ranks = field(default_factory=Ranks)
    observe: Callable[[str], None] = lambda _: None
    trust: Trust | None = None
    _newest: CheckpointRef | None = None
    _refused: frozenset[int] = frozenset()

    def begin(self) -> None:
        """Fence older attempts and remove what they left half-written.

        Raises TrainerError PEER_LOST when a newer attempt has begun.
        """
        self.ranks.on_first(lambda: self._writing(self._begin, 0))

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
            needed = sum(sizes)
            self.ranks.on_first(lambda: self._writing(lambda: self._make_room(temporary, needed), needed))
            files = self.ranks.everywhere(lambda: self._writing(lambda: self._write_shard(temporary, entries), needed))
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
            ref = self.ranks.on_first(lambda: self._writing(lambda: self._commit(temporary, manifest), needed))
        except TrainerError:
            if self.ranks.rank == 0:
                remove(temporary)
            raise
        self._newest = CheckpointRef(**ref)
        return self._newest

    def amend(self, *, loop: Mapping[str, Any], metrics: Mapping[str, float | None]) -> CheckpointRef:
        """Replace what the newest checkpoint says of the loop, in one step; its tensors stay as they are.

        Raises TrainerError on every rank when it fails.
        """
        self._newest = CheckpointRef(
            **self.ranks.on_first(lambda: self._writing(lambda: self._amend(loop, metrics), 0))
        )
        return self._newest

    def load(self, state: Zero3State) -> Restored | None:
        """Set the engine to the newest checkpoint that can be used; None when none was ever committed.

        Raises as loading.Loader.load does.
        """
        restored = Loader(self.root, self.identity, self.ranks, self.trust).load(state)
        if restored is not None:
            self._newest, self._refused = restored.ref, restored.refused_steps
        return restored

    def _writing(self, work: Callable[[], T], needed: int) -> T:
        """Do a part of a save, of so many bytes in all. An error of the volume is told with what to do about it."""
        with explained(self.root, needed, self._check_fence):
            return work()

    def _begin(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self._check_fence()
        fence = self.root / layout.FENCE
        temporary = fence.with_suffix(f".{self.attempt}.tmp")
        write_synced(temporary, f"{self.attempt}\n".encode())
        temporary.replace(fence)
        sync_folder(self.root)
        for folder in layout.temporary_folders(self.root):
            remove(folder)

    def _check_fence(self) -> None:
        if (newest := layout.read_fence(self.root)) > self.attempt:
            raise TrainerError(
                ExitCode.PEER_LOST, f"Attempt {newest} has begun, so attempt {self.attempt} may no longer write."
            )

    def _make_room(self, temporary: Path, needed: int) -> None:
        self.observe("space-checked")
        check_room(self.root, needed)
        remove(temporary)
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
            remove(replaced)
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
        self._refused -= {newest}
        try:
            found, left_over = layout.committed(self.root), layout.temporary_folders(self.root)
            costs = usable_costs(found, self._refused)
        except OSError:
            return  # the volume does not answer: what can't be read may be good, so it waits for the next save
        keep = {layout.folder_name(step) for step in retained(costs, newest, self.keep_last, self.keep_best)}
        for folder in [folder for _, folder in found if folder.name not in keep] + left_over:
            remove(folder)


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
