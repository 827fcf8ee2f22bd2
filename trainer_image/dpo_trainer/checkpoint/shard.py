"""One rank's safetensors file: written tensor by tensor, hashed on the way, read in slices.

The format is the safetensors library's (a JSON header, then raw little-endian data); its own writer would need all
bytes in memory at once, and a second pass over the file for the digest.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.checkpoint.manifest import File
from dpo_trainer.checkpoint.plain_files import BadCheckpoint, open_plain, unreadable
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.files import create

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
_HEADER_ALIGNMENT = 8
# safetensors has no type annotations.
_open: Callable[..., Any] = safe_open
# fdatasync after this many bytes. It bounds the dirty pages in memory and the time of the final fsync.
_UNSYNCED_BYTES = 1 << 30


@dataclass(frozen=True)
class Entry:
    """A tensor to write, read lazily.

    read: returns the tensor with numel elements of dtype (of _NAMES), on any device. shape: as the file names it; None: one dimension.
    """

    name: str
    dtype: torch.dtype
    numel: int
    read: Callable[[], Tensor]
    shape: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.numel * self.dtype.itemsize


def file_size(entries: Sequence[Entry], metadata: Mapping[str, str] | None = None) -> int:
    """Size of a shard's file, bytes. metadata: see write_shard."""
    return len(header_bytes(entries, metadata)) + sum(entry.size for entry in entries)


def write_shard(
    path: Path,
    entries: Sequence[Entry],
    observe: Callable[[str], None] = lambda _: None,
    alive: Callable[[], None] = lambda: None,
    metadata: Mapping[str, str] | None = None,
) -> File:
    """Write and fsync a shard; returns its size and digest. One tensor at a time is in memory.

    observe: called with "shard-opened", "shard-half", "shard-written" and "shard-synced" at these points. alive: called after each tensor.
    metadata: the file's own, of the safetensors format.
    Raises TrainerError NON_FINITE when a number is NaN or infinite, FileExistsError, OSError.
    """
    digest, size, synced, header = hashlib.sha256(), 0, 0, header_bytes(entries, metadata)
    half = sum(entry.size for entry in entries) // 2
    with create(path) as file, ThreadPoolExecutor(1) as pool:
        observe("shard-opened")
        for part in _parts(header, entries):
            # Hashing and writing both release the interpreter lock, so they take the time of the slower one.
            hashed = pool.submit(digest.update, part)
            file.write(part)
            hashed.result()
            if size <= half < size + len(part):
                observe("shard-half")
            size += len(part)
            if size - synced > _UNSYNCED_BYTES:
                file.flush()
                os.fdatasync(file.fileno())
                synced = size
            alive()
        file.flush()
        observe("shard-written")
        os.fsync(file.fileno())
        observe("shard-synced")
    return File(size=size, sha256=digest.hexdigest())


class ShardReader:
    """Slices of the tensors in one shard. The file must have been verified. Raises BadCheckpoint, and OSError when the volume is gone."""

    def __init__(self, path: Path) -> None:
        try:
            file = open_plain(path)  # the library would follow a link, and wait for the writer of a pipe
        except OSError as error:
            raise unreadable(path.name, error) from error
        with file:
            try:
                self._file = _open(f"/proc/self/fd/{file.fileno()}", framework="pt", device="cpu")
                self._names = frozenset(self._file.keys())
            except Exception as error:  # safetensors raises many types
                raise BadCheckpoint(f"{path.name}: is not safetensors: {error}") from error

    def slice(self, name: str, start: int, end: int) -> Tensor:
        """Elements start to end of a one-dimensional tensor. Raises BadCheckpoint when they are not there."""
        if name not in self._names:
            raise BadCheckpoint(f"has no tensor {name}")
        view = self._file.get_slice(name)
        shape = view.get_shape()
        if len(shape) != 1 or not 0 <= start <= end <= shape[0]:
            raise BadCheckpoint(f"{name}: expected elements {start} to {end}, found shape {shape}")
        part: Tensor = view[start:end]
        return part

    def get(self, name: str) -> Tensor | None:
        """A whole tensor, or None."""
        whole: Tensor | None = self._file.get_tensor(name) if name in self._names else None
        return whole


def header_bytes(entries: Sequence[Entry], metadata: Mapping[str, str] | None = None) -> bytes:
    """What a file of these tensors begins with; their bytes follow one after another."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for entry in entries:
        table[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": [entry.numel] if entry.shape is None else [*entry.shape],
            "data_offsets": [offset, offset + entry.size],
        }
        offset += entry.size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _parts(header: bytes, entries: Sequence[Entry]) -> Iterable[memoryview]:
    yield memoryview(header)
    for entry in entries:
        tensor = entry.read()
        if tensor.dtype != entry.dtype or tensor.numel() != entry.numel:
            raise ValueError(
                f"{entry.name}: expected {entry.numel} of {entry.dtype}, found {tensor.shape} {tensor.dtype}"
            )
        tensor = tensor.cpu().contiguous().reshape(-1)
        # One pass over memory, a fraction of the digest's time. Gradients were finite; this is the last guard.
        if (
            tensor.dtype == torch.float32
            and tensor.numel()
            and not all(map(math.isfinite, torch.stack(torch.aminmax(tensor)).tolist()))
        ):
            raise TrainerError(
                ExitCode.NON_FINITE,
                f"{entry.name}: expected finite numbers, found NaN or infinity; this checkpoint was not committed and the older ones are "
                "untouched. Lower training.learningRate, or set training.maxGradNorm.",
            )
        yield tensor.view(torch.uint8).numpy().data
