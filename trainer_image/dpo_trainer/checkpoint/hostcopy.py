"""A copy of a rank's entries in host memory, so that training can continue while they are written."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dpo_trainer.checkpoint.shard import Entry
from dpo_trainer.distributed.world import uses_cuda

log = logging.getLogger(__name__)

# Keeps every entry at a multiple of its element's size.
_ALIGNMENT = 64


class HostCopy:
    """A reusable buffer in host memory, made when it is reserved or at the first copy; pinned on GPUs.

    Only one copy is valid at a time: the next one overwrites it.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._pinned = False

    def reserve(self, entries: Sequence[Entry]) -> None:
        """Make the buffer for entries of these sizes. Raises RuntimeError when there is no memory for it."""
        self._make(_places(entries)[-1])

    def take(self, entries: Sequence[Entry]) -> list[Entry]:
        """Copy the entries' data; returns entries that read from the copy. Raises RuntimeError when there is no memory for it."""
        *starts, size = _places(entries)
        on_gpu = uses_cuda()
        self._make(size)
        copied = []
        for entry, start in zip(entries, starts, strict=True):
            into = self._buffer[start : start + entry.size].view(entry.dtype)
            into.copy_(entry.read(), non_blocking=on_gpu)
            copied.append(replace(entry, read=partial(_same, into)))
        if on_gpu:
            torch.cuda.synchronize()
        return copied

    def _make(self, size: int) -> None:
        if self._buffer.numel() == size:
            return
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._buffer.data_ptr())  # type: ignore[no-untyped-call]  # not annotated in torch
        self._buffer, self._pinned = torch.empty(0, dtype=torch.uint8), False  # free the old buffer first
        self._buffer = torch.empty(size, dtype=torch.uint8)
        if size and uses_cuda():
            # Pinned in place: torch's own allocator of pinned memory would take the next power of two, up to twice as much.
            answer = torch.cuda.cudart().cudaHostRegister(self._buffer.data_ptr(), size, 0)  # type: ignore[no-untyped-call]
            self._pinned = int(answer) == 0
            if not self._pinned:
                log.warning(
                    "%d bytes of host memory can't be pinned (CUDA error %d); saves block training longer",
                    size,
                    int(answer),
                )


def _places(entries: Sequence[Entry]) -> list[int]:
    """Where each entry begins in the buffer, and at the end the buffer's size; bytes."""
    places = [0]
    for entry in entries:
        places.append(places[-1] + -(-entry.size // _ALIGNMENT) * _ALIGNMENT)
    return places


def _same(tensor: Tensor) -> Tensor:
    return tensor
