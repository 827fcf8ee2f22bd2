"""State of torch's random generators, which dropout draws from, as tensors of a shard."""

import hashlib

import torch

from dpo_trainer.checkpoint.shard import Entry, ShardReader
from dpo_trainer.distributed.world import uses_cuda


def rng_entries() -> list[Entry]:
    """State of torch's generators, which dropout draws from."""
    made = [_entry("rng/cpu", torch.get_rng_state())]
    if uses_cuda():
        made.append(_entry("rng/cuda", torch.cuda.get_rng_state()))
    return made


def _entry(name: str, value: torch.Tensor) -> Entry:
    return Entry(name, torch.uint8, value.numel(), lambda: value.clone())


def set_rng(shard: ShardReader | None, *, seed: str) -> None:
    """Restore the state of torch's generators.

    shard: None after a change of the number of ranks; then each rank is seeded from `seed`.
    """
    if shard is None:
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big"))
        return
    if (cpu := shard.get("rng/cpu")) is not None:
        torch.set_rng_state(cpu.clone())
    if (cuda := shard.get("rng/cuda")) is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda.clone())
