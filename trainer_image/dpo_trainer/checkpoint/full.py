"""Whole parameters from the shards of all ranks, one at a time: no GPU, no DeepSpeed, no process group."""

from pathlib import Path

import torch
from torch import Tensor

from dpo_operator.api.reports import CheckpointRef
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.loop_state import LoopState
from dpo_trainer.checkpoint.manifest import Manifest, read_manifest, reference
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.checkpoint.shard import ShardReader
from dpo_trainer.checkpoint.trust import Owner
from dpo_trainer.checkpoint.verification import verify_shards
from dpo_trainer.runtime.errors import input_not_found, volume_error


class FullCheckpoint:
    """A verified checkpoint. doubt: why it is not fully trusted; empty if it is."""

    def __init__(self, root: Path, folder: Path, owner: Owner | None = None) -> None:
        """Check every digest. owner: the job that it must belong to; None accepts any. Raises BadCheckpoint."""
        self.folder = folder
        self.manifest: Manifest
        self.manifest, digest = read_manifest(folder)
        self.doubt = owner.judge(self.manifest, digest) if owner else ""
        verify_shards(folder, self.manifest, range(self.manifest.world_size), kinds=("fp32",))
        self.ref: CheckpointRef = reference(root, self.manifest, digest)
        self._shards = [ShardReader(folder / layout.shard_name(r)) for r in range(self.manifest.world_size)]

    @property
    def state(self) -> LoopState:
        """State of the training loop."""
        return self.manifest.state

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A trained parameter in its own shape, rounded to a dtype. Raises BadCheckpoint when slices are missing."""
        parameter = self.manifest.parameters[name]
        parts = [part for shard in self._shards if (part := shard.get(f"fp32/{name}")) is not None]
        if (found := sum(part.numel() for part in parts)) != parameter.numel:
            raise BadCheckpoint(f"{name}: expected {parameter.numel} elements, found {found}")
        flat, start = torch.empty(parameter.numel, dtype=dtype), 0
        for part in parts:
            flat[start : start + part.numel()] = part
            start += part.numel()
        return flat.reshape(parameter.shape)


def open_best(
    root: Path, newest: FullCheckpoint, owner: Owner | None = None
) -> tuple[FullCheckpoint | None, list[str]]:
    """Best intact checkpoint by selection cost, ties to the later; and the better ones that were skipped, with the reason.

    None when no evaluated checkpoint is intact.
    newest: the last checkpoint, whose state lists every evaluation of the run.
    """
    skipped: list[str] = []
    evaluated = [(cost, -step) for step, cost in newest.state.evaluations if cost is not None]
    for _, negative in sorted(evaluated):
        folder = root / layout.folder_name(-negative)
        if not folder.is_dir():
            skipped.append(f"{folder.name} is no longer there")
            continue
        try:
            checkpoint = FullCheckpoint(root, folder, owner)
        except BadCheckpoint as error:
            skipped.append(f"{folder.name}: {error}")
            continue
        if checkpoint.manifest.selection_cost is not None and checkpoint.state.probe is not None:
            return checkpoint, skipped
        skipped.append(f"{folder.name} was saved without its evaluation")
    return None, skipped


def open_newest(root: Path, owner: Owner | None = None) -> tuple[FullCheckpoint, list[str]]:
    """The newest intact checkpoint, and the newer ones that were refused, with the reason.

    Raises TrainerError when there is none.
    """
    refused: list[str] = []
    for _, folder in require_any(root):
        try:
            return FullCheckpoint(root, folder, owner), refused
        except BadCheckpoint as error:
            refused.append(f"{folder.name}: {error}")
    raise volume_error(f"No checkpoint in {root} is intact and belongs to this job: {'; '.join(refused)}")


def require_any(root: Path) -> list[tuple[int, Path]]:
    """Steps and folders of the checkpoints there, newest first. Raises TrainerError INPUT_NOT_FOUND when there are none."""
    if found := layout.committed(root):
        return found
    raise input_not_found(f"{root}: expected a committed checkpoint, found none; train first")
