"""Memory of this process's device: what is free, and giving back what is not used."""

import ctypes
import ctypes.util
import gc
import os
from pathlib import Path

import torch

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def release_free() -> None:
    """Return free memory of the C heap to the operating system. Does nothing with C libraries other than glibc.

    Loading a model leaves free blocks of its size. glibc keeps them, and later allocations do not always fit into them, so the peak
    memory of a run would depend on how its model was read.
    """
    gc.collect()
    name = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(name), "malloc_trim", None) if name else None
    if trim is not None:
        trim(0)


def free_cached() -> None:
    """Give back the memory of tensors that are gone, after an allocation failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    else:
        release_free()


def available(device: torch.device) -> int:
    """Bytes that this process can still allocate on its device. On a CPU the ranks of this host share what there is."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    fields = (line.split() for line in _MEMINFO.read_text().splitlines())
    free = next(int(words[1]) << 10 for words in fields if words[0] == "MemAvailable:")
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)


def _number(file: Path) -> int | None:
    """The number in a file of a control group; None where there is no limit, or no such group."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
