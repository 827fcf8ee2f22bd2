"""A copy of a rank's entries in host memory, so that training can continue while they are written."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dpo_trainer.checkpoint.shard import Entry
from dpo_trainer.distributed.world import uses_cuda

# Keeps every entry at a multiple of its element's size.
_ALIGNMENT = 64


class HostCopy:
    """A reusable buffer in host memory, made at the first copy; pinned on GPUs.

    Only one copy is valid at a time: the next one overwrites it.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def take(self, entries: Sequence[Entry]) -> list[Entry]:
        """Copy the entries' data; returns entries that read from the copy. Raises RuntimeError when there is no memory for it."""
        starts, size = [], 0
        for entry in entries:
            starts.append(size)
            size += -(-entry.size // _ALIGNMENT) * _ALIGNMENT
        on_gpu = uses_cuda()
        if self._buffer.numel() != size:
            self._buffer = torch.empty(0, dtype=torch.uint8)  # free the old buffer first
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu)
        copied = []
        for entry, start in zip(entries, starts, strict=True):
            into = self._buffer[start : start + entry.size].view(entry.dtype)
            into.copy_(entry.read(), non_blocking=on_gpu)
            copied.append(replace(entry, read=partial(_same, into)))
        if on_gpu:
            torch.cuda.synchronize()
        return copied


def _same(tensor: Tensor) -> Tensor:
    return tensor
