"""The checkpoints of a job: who may write, what a save takes from the loop, which one a run goes on from.

A newer attempt fences an older one in this order: it writes its number, removes every temporary folder, and only then
looks which checkpoints there are. An older writer that still lives either renamed its folder before, and the newer
attempt sees that checkpoint, or finds its folder gone and fails.

A save in the background copies the rank's state and hands it to a thread, which goes through the same protocol as a save in
the foreground, over a process group of its own (docs/decisions/0006-saves-in-the-background.md).
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dpo_operator.api.reports import CheckpointRef
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.background import Background
from dpo_trainer.checkpoint.hostcopy import HostCopy
from dpo_trainer.checkpoint.identity import differences
from dpo_trainer.checkpoint.layout import BadCheckpoint, Manifest
from dpo_trainer.checkpoint.ranks import Ranks
from dpo_trainer.checkpoint.rng import rng_entries, set_rng
from dpo_trainer.checkpoint.shard import Entry, ShardReader
from dpo_trainer.checkpoint.writer import Writer
from dpo_trainer.checkpoint.zero3 import Zero3State, partition
from dpo_trainer.errors import invalid_configuration, volume_error
from dpo_trainer.versions import library_versions


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
    """The checkpoints of one job, as one attempt writes and reads them. Methods are collective unless they say otherwise.

    root: the folder of all checkpoints. identity: see identity.py. keep_best: kept besides, by metrics["selection"].
    aside: the same ranks in a process group of its own, over which saves run in the background; None saves in the foreground.
    on_commit: called on every rank when a checkpoint was committed, with the seconds since its save began; in the
        background's thread. observe, before_commit: see Writer.
    """

    root: Path
    attempt: int
    identity: Mapping[str, Any]
    keep_last: int = 2
    keep_best: int = 1
    ranks: Ranks = field(default_factory=Ranks)
    aside: Ranks | None = None
    on_commit: Callable[[CheckpointRef, float], None] = lambda _ref, _seconds: None
    before_commit: Callable[[], None] = lambda: None
    observe: Callable[[int, str], None] = lambda _step, _point: None
    _newest: CheckpointRef | None = None
    _background: Background = field(default_factory=Background)
    _copy: HostCopy = field(default_factory=HostCopy)

    def begin(self) -> None:
        """Fence older attempts and remove what they left half-written.

        Raises TrainerError PEER_LOST when a newer attempt has begun.
        """
        self.ranks.on_first(self._writer(self.ranks).begin)

    def save(
        self, state: Zero3State, *, step: int, loop: Mapping[str, Any], metrics: Mapping[str, float | None]
    ) -> None:
        """Save the current weights after `step` optimizer steps: committed on return, or in the background later.

        loop: JSON, the loop's own state; rank 0's is kept. A step that is already committed is not written again.
        A save that is still running is waited for first. Raises TrainerError on every rank when it, or in the foreground
        this one, fails on one; then the temporary folder is gone and the older checkpoints are as they were.
        """
        self.wait()
        if self._newest is not None and self._newest.step == step:
            return
        began = time.monotonic()
        manifest = Manifest(
            step=step,
            attempt=self.attempt,
            world_size=self.ranks.world_size,
            time=time.time(),
            identity=dict(self.identity),
            parameters=state.parameters(),
            adam_step=state.adam_step(),
            files={},
            state=copy.deepcopy(dict(loop)),
            metrics=dict(metrics),
            versions=library_versions(),
        )
        entries = [*state.entries(), *rng_entries()]
        if self.aside is None:
            self._write(self.ranks, entries, manifest, began)
            return
        aside, copied = self.aside, self._copy.take(entries)
        self.observe(step, "copied")
        self._background.start(lambda: self._write(aside, copied, manifest, began))

    def wait(self) -> None:
        """Wait for the save in the background, if there is one. Raises TrainerError on every rank when it failed on one."""
        self._background.wait()

    def drain(self, seconds: float) -> None:
        """Let a save end that still can, because the run ends for another reason. Not collective; raises nothing."""
        try:
            self._background.wait(seconds)
        except Exception:  # the run's own reason counts
            return

    @property
    def failed(self) -> bool:
        """Whether a save in the background has failed, as far as this rank knows; `wait` raises it. Not collective."""
        return self._background.failed

    def amend(self, *, loop: Mapping[str, Any], metrics: Mapping[str, float | None]) -> None:
        """Replace what the newest checkpoint says of the loop, in one step; its tensors stay as they are.

        Raises TrainerError on every rank when it fails.
        """
        assert self._newest is not None, "there is a checkpoint to amend"
        began, step, writer = time.monotonic(), self._newest.step, self._writer(self.ranks)
        self._newest = CheckpointRef(**self.ranks.on_first(lambda: writer.amend(step, loop, metrics)))
        self.on_commit(self._newest, time.monotonic() - began)

    def _writer(self, ranks: Ranks) -> Writer:
        return Writer(self.root, self.attempt, self.keep_last, self.keep_best, ranks, self.observe, self.before_commit)

    def _write(self, ranks: Ranks, entries: Sequence[Entry], manifest: Manifest, began: float) -> None:
        self._newest = self._writer(ranks).write(entries, manifest)
        self.on_commit(self._newest, time.monotonic() - began)

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
