"""A copy of a rank's entries in host memory, so that training may go on while they are written."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dpo_trainer.checkpoint.shard import Entry

# Keeps every entry at a multiple of its element's size.
_ALIGNMENT = 64


class HostCopy:
    """One buffer of this process, made at the first copy and used again for each; on GPUs it is pinned.

    Only one copy is valid at a time: the next one overwrites it.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def take(self, entries: Sequence[Entry]) -> list[Entry]:
        """The same entries, read from the copy from now on. Raises RuntimeError when there is no memory for it."""
        starts, size = [], 0
        for entry in entries:
            starts.append(size)
            size += -(-entry.size // _ALIGNMENT) * _ALIGNMENT
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        if self._buffer.numel() != size:
            self._buffer = torch.empty(0, dtype=torch.uint8)  # gives the old one back first
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
