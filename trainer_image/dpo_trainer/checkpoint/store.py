"""Facade of the checkpoints of a job: fencing, saving, loading.

A newer attempt fences an older one in this order: it writes its number, removes every temporary folder, and only then
lists the checkpoints. An older live writer either committed before, and the newer attempt sees the checkpoint, or finds
its folder gone and fails.

A save in the background copies the rank's state and hands it to a thread, which goes through the same protocol as a save in
the foreground, over a process group of its own (docs/decisions/0006-saves-in-the-background.md).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_operator.api.reports import CheckpointRef
from dpo_trainer.checkpoint.background import Background
from dpo_trainer.checkpoint.engine_state import EngineState
from dpo_trainer.checkpoint.hostcopy import HostCopy
from dpo_trainer.checkpoint.loading import Loader, Restored
from dpo_trainer.checkpoint.loop_state import LoopState
from dpo_trainer.checkpoint.manifest import Manifest
from dpo_trainer.checkpoint.rng import rng_entries
from dpo_trainer.checkpoint.shard import Entry
from dpo_trainer.checkpoint.skipped import remember_skipped, skipped
from dpo_trainer.checkpoint.trust import Trust
from dpo_trainer.checkpoint.writer import Writer
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.runtime.versions import library_versions


@dataclass
class Checkpoints:
    """The checkpoints of one job, as one attempt writes and reads them. Methods are collective unless they say otherwise.

    root: the folder of all checkpoints. identity: see identity.py. keep_best: also kept, by LoopState.selection_cost.
    background: the same ranks in their own process group, for saves in the background; None saves in the foreground.
    trust: recorded digests; the checkpoints of this attempt, and the one that it resumed from, are trusted without a record. None
        accepts any intact checkpoint.
    on_commit: called on every rank when a checkpoint was committed, with the seconds since its save began; in the
        background's thread. observe, before_commit: see Writer.
    alive: called during writing and reading while the loop waits for it. From any thread.
    """

    root: Path
    attempt: int
    identity: Mapping[str, Any]
    keep_last: int = 2
    keep_best: int = 1
    ranks: Ranks = field(default_factory=Ranks)
    background: Ranks | None = None
    on_commit: Callable[[CheckpointRef, float], None] = lambda _ref, _seconds: None
    before_commit: Callable[[], None] = lambda: None
    trust: Trust | None = None
    observe: Callable[[int, str], None] = lambda _step, _point: None
    alive: Callable[[], None] = lambda: None
    _newest: CheckpointRef | None = None
    _own: list[CheckpointRef] = field(default_factory=list)
    _refused: frozenset[int] = frozenset()
    _task: Background = field(default_factory=Background)
    _copy: HostCopy = field(default_factory=HostCopy)
    _awaited: bool = False

    def begin(self) -> None:
        """Fence older attempts and remove what they left half-written.

        Raises TrainerError PEER_LOST when a newer attempt has begun.
        """
        writer = self._writer(self.ranks, self.alive)
        self.ranks.run_on_rank_zero(lambda: writer.saving(0, writer.begin))

    def reserve(self, state: EngineState) -> None:
        """Make the buffer for saves in the background now, so that a host without room for it shows before the first step."""
        if self.background is not None:
            self._copy.reserve(_entries(state))

    def save(self, state: EngineState, loop: LoopState, *, last: bool = False) -> None:
        """Save the current weights after `loop.step` optimizer steps: committed on return, or in the background later.

        last: synchronous, and without the copy, because training has ended.
        loop: rank 0's is kept. A step that is already committed is not written again.
        Waits for a running save first. Raises TrainerError on every rank if that save, or this foreground save, failed on
        any; then the temporary folder is gone and the older checkpoints are as they were.
        """
        self.wait()
        if self._newest is not None and self._newest.step == loop.step:
            return
        began = time.monotonic()
        manifest = Manifest(
            step=loop.step,
            attempt=self.attempt,
            world_size=self.ranks.world_size,
            time=time.time(),
            identity=dict(self.identity),
            parameters=state.parameters(),
            adam_step=state.adam_step(),
            files={},
            state=loop,
            metrics=loop.metrics(),
            versions=library_versions(),
        )
        entries = _entries(state)
        if self.background is None or last:
            self._write(self.ranks, entries, manifest, began, self.alive)
            return
        background, copied = self.background, self._copy.take(entries)
        self.observe(loop.step, "copied")
        self._task.start(lambda: self._write(background, copied, manifest, began, self._background_heartbeat))

    def wait(self) -> None:
        """Wait for the save in the background, if there is one. Raises TrainerError on every rank when it failed on one."""
        self._awaited = True
        try:
            self._task.wait()
        finally:
            self._awaited = False

    def drain(self, seconds: float) -> None:
        """Wait for a running save during shutdown, at most these seconds. Not collective; raises nothing."""
        try:
            self._task.wait(seconds)
        except Exception:  # don't mask the error that ends the run
            return

    @property
    def failed(self) -> bool:
        """Whether a save in the background has failed, as far as this rank knows; `wait` raises it. Not collective."""
        return self._task.failed

    def amend(self, loop: LoopState) -> None:
        """Atomically replace loop state and metrics of the newest checkpoint; its tensors stay as they are.

        Raises TrainerError on every rank when it fails.
        """
        assert self._newest is not None, "there is a checkpoint to amend"
        began, step, writer = time.monotonic(), self._newest.step, self._writer(self.ranks, self.alive)
        self._committed(
            CheckpointRef(**self.ranks.run_on_rank_zero(lambda: writer.saving(0, lambda: writer.amend(step, loop)))),
            began,
        )

    def remember_skipped(self, steps: Sequence[int]) -> None:
        """Record durably which steps were skipped, before a rollback. Raises TrainerError on every rank when it fails."""
        writer = self._writer(self.ranks, self.alive)

        def record() -> None:
            writer.check_fence()
            remember_skipped(self.root, steps)

        self.ranks.run_on_rank_zero(lambda: writer.saving(0, record))

    def skipped(self, restored: Restored | None) -> list[int]:
        """Steps that are to be skipped: those that a checkpoint names, and those that were recorded since. Raises TrainerError."""
        recorded = self.ranks.run_on_rank_zero(lambda: skipped(self.root))
        return list(dict.fromkeys([*(restored.state.skipped if restored else ()), *recorded]))

    def _background_heartbeat(self) -> None:
        """No-op unless the loop waits: background progress must not mask a hung loop."""
        if self._awaited:
            self.alive()

    def _writer(self, ranks: Ranks, alive: Callable[[], None]) -> Writer:
        return Writer(
            self.root,
            self.attempt,
            self.keep_last,
            self.keep_best,
            ranks,
            self.observe,
            self.before_commit,
            refused=self._refused,
            alive=alive,
        )

    def _write(
        self, ranks: Ranks, entries: Sequence[Entry], manifest: Manifest, began: float, alive: Callable[[], None]
    ) -> None:
        self._committed(self._writer(ranks, alive).write(entries, manifest), began)

    def _committed(self, ref: CheckpointRef, began: float) -> None:
        self._newest = ref
        self._trust_own(ref)
        self._refused -= {ref.step}
        self.on_commit(ref, time.monotonic() - began)

    def _trust_own(self, ref: CheckpointRef) -> None:
        self._own = [*(other for other in self._own if other.step != ref.step), ref]

    def load(self, state: EngineState) -> Restored | None:
        """Set the engine to the newest checkpoint that can be used; None when none was ever committed.

        Raises as loading.Loader.load does.
        """
        trust = self.trust.with_own(self._own) if self.trust else None
        restored = Loader(self.root, self.identity, self.ranks, trust, self.alive).load(state)
        if restored is not None:
            self._newest, self._refused = restored.ref, restored.refused_steps
            # A checkpoint that was resumed from may also be rolled back to, even without a record of it.
            self._trust_own(restored.ref)
        return restored


def _entries(state: EngineState) -> list[Entry]:
    """All that a rank writes."""
    return [*state.entries(), *rng_entries()]
