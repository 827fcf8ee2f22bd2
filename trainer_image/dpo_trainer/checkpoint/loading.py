"""Select and load the checkpoint to resume from: the newest intact, matching and trusted one. All methods are collective."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dpo_operator.api.reports import CheckpointRef
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.engine_state import EngineState
from dpo_trainer.checkpoint.identity import differences, mismatch_message
from dpo_trainer.checkpoint.loop_state import LoopState
from dpo_trainer.checkpoint.manifest import Manifest, read_manifest, reference
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.checkpoint.rng import set_rng
from dpo_trainer.checkpoint.shard import ShardReader
from dpo_trainer.checkpoint.slices import partition, pieces
from dpo_trainer.checkpoint.trust import Trust
from dpo_trainer.checkpoint.verification import kinds_of, verify_shards
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration, volume_error


@dataclass(frozen=True)
class Restored:
    """Resumed state.

    refused: newer checkpoints that could not be used, each with its reason. refused_steps: steps of the refused checkpoints.
    doubt: why the resumed checkpoint is not fully trusted; empty if it is.
    """

    ref: CheckpointRef
    state: LoopState
    metrics: dict[str, float | None]
    refused: tuple[str, ...] = ()
    refused_steps: frozenset[int] = frozenset()
    doubt: str = ""

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self.ref.step


@dataclass(frozen=True)
class Loader:
    """Reads the checkpoints of one job. root, identity, alive: see store.Checkpoints. trust: None accepts any intact one."""

    root: Path
    identity: Mapping[str, Any]
    ranks: Ranks
    trust: Trust | None
    alive: Callable[[], None] = lambda: None

    def load(self, state: EngineState) -> Restored | None:
        """Set the engine to the newest checkpoint that can be used; None when none was ever committed.

        Raises TrainerError INVALID_CONFIGURATION when all intact checkpoints belong to other settings, VOLUME_ERROR when
        there are or were checkpoints and none can be used: starting from step 0 would lose their work.
        """
        there = self.ranks.run_on_rank_zero(
            lambda: [(step, folder.name) for step, folder in layout.committed(self.root)]
        )
        refused: list[str] = []
        foreign = ""
        for step, name in there:
            folder = self.root / name
            found = self.ranks.run_on_all(partial(self._inspect, folder, state))
            reasons = [answer["reason"] for answer in found if answer["reason"]]
            if not reasons and len({answer["digest"] for answer in found}) > 1:
                reasons = ["the ranks read different manifests"]
            if reasons:
                refused.append(f"{folder.name}: {reasons[0]}")
                foreign = foreign or (refused[-1] if found[0]["foreign"] else "")
                continue
            digest, doubt = found[0]["digest"], found[0]["doubt"]
            self.ranks.run_on_all(partial(self._restore, folder, digest, state))
            manifest, _ = read_manifest(folder)
            ref = reference(self.root, manifest, digest)
            return Restored(
                ref,
                manifest.state,
                manifest.metrics,
                refused=tuple(refused),
                refused_steps=frozenset(other for other, _ in there if other > step),
                doubt=doubt and f"{folder.name}: {doubt}",
            )
        if foreign:
            raise invalid_configuration(f"{foreign}. Undo the change, or use another work folder.")
        if refused:
            raise volume_error(
                f"None of the {len(refused)} checkpoints in {self.root} is intact and belongs to this job: {'; '.join(refused)}. Restore "
                "one from a backup, or delete that folder to train from the start."
            )
        if self.trust and self.trust.records:
            last = max(self.trust.records, key=lambda record: record.age)
            raise volume_error(
                f"{self.root}: expected the checkpoint of step {last.step}, which attempt {last.attempt} committed, found none. "
                "Restore it from a backup, or create the job again to train from the start."
            )
        return None

    def load_weights(self, folder: Path, digest: str, state: EngineState) -> None:
        """Set the engine to the weights of one checkpoint, with a fresh optimizer; random numbers stay. digest: of its manifest.

        Raises TrainerError VOLUME_ERROR when it is not that checkpoint any more, is not intact, or belongs to other settings.
        """
        answers = self.ranks.run_on_all(partial(self._inspect, folder, state))
        reasons = [answer["reason"] for answer in answers if answer["reason"]]
        if not reasons and any(answer["digest"] != digest for answer in answers):
            reasons = ["its manifest was changed"]
        if reasons:
            raise volume_error(f"{folder}: the training starts from this checkpoint, and {reasons[0]}")
        self.ranks.run_on_all(partial(self._restore, folder, digest, state, weights_only=True))

    def _inspect(self, folder: Path, state: EngineState) -> dict[str, Any]:
        """Digest of the manifest if the shards that this rank needs are intact, else the reason why not."""
        answer: dict[str, Any] = {"reason": None, "digest": None, "doubt": "", "foreign": False}
        try:
            manifest, digest = read_manifest(folder)
            if problems := self._mismatch(manifest, state):
                return answer | {"reason": problems, "foreign": True}
            doubt = self.trust.judge(manifest, digest) if self.trust else ""
            needed = self._needed(manifest)
            verify_shards(folder, manifest, needed, kinds=kinds_of(manifest), alive=self.alive)
            for rank in needed:
                ShardReader(folder / layout.shard_name(rank))
        except BadCheckpoint as error:
            return answer | {"reason": str(error)}
        except OSError as error:
            raise _no_answer(folder, error) from error
        return answer | {"digest": digest, "doubt": doubt}

    def _mismatch(self, manifest: Manifest, state: EngineState) -> str:
        """How a checkpoint's settings or parameters differ from the job's; empty when they do not."""
        problems = differences(manifest.identity, dict(self.identity))
        now = state.parameters()
        for name in sorted(manifest.parameters.keys() | now.keys()):
            saved, expected = manifest.parameters.get(name), now.get(name)
            if saved is None or expected is None or saved.shape != expected.shape:
                shapes = [part.shape if part else "nothing" for part in (saved, expected)]
                problems.append(f"parameter {name}: the checkpoint has {shapes[0]}, the model {shapes[1]}")
        return mismatch_message(problems)

    def _needed(self, manifest: Manifest) -> set[int]:
        """Ranks whose shards this rank reads. Together the ranks read, and so verify, every shard that holds data."""
        if manifest.world_size == self.ranks.world_size:
            return {self.ranks.rank}
        ranks: set[int] = set()
        for parameter in manifest.parameters.values():
            start, end = partition(parameter.numel, self.ranks.rank, self.ranks.world_size)
            ranks.update(r for r, _, _ in pieces(parameter.numel, start, end, manifest.world_size))
        return ranks

    def _restore(self, folder: Path, digest: str, state: EngineState, *, weights_only: bool = False) -> None:
        try:
            manifest, now = read_manifest(folder)
            if now != digest:
                raise BadCheckpoint("the manifest was changed while it was being read")
            readers = {rank: ShardReader(folder / layout.shard_name(rank)) for rank in self._needed(manifest)}

            def read(kind: str, name: str, start: int, end: int) -> torch.Tensor:
                parts = pieces(manifest.parameters[name].numel, start, end, manifest.world_size)
                self.alive()
                return torch.cat([readers[rank].slice(f"{kind}/{name}", a, b) for rank, a, b in parts])

            state.restore(read, 0 if weights_only else manifest.adam_step)
            if weights_only:
                return
            own = readers.get(self.ranks.rank)
            same = manifest.world_size == self.ranks.world_size
            set_rng(own if same else None, seed=f"{manifest.step}/{self.ranks.rank}")
        except BadCheckpoint as error:
            raise volume_error(f"{folder.name}: {error}, although its digests are right") from error
        except OSError as error:
            raise _no_answer(folder, error) from error


def _no_answer(folder: Path, error: OSError) -> TrainerError:
    return volume_error(
        f"{folder} can't be read: {error.strerror}. Is the volume still mounted, and does its server respond? No older checkpoint was "
        "used, because the newest may be good."
    )
