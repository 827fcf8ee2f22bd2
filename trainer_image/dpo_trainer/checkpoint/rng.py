"""State of torch's random generators, which dropout draws from, as tensors of a shard."""

import hashlib

import torch

from dpo_trainer.checkpoint.shard import Entry, ShardReader


def rng_entries() -> list[Entry]:
    """State of torch's generators, which dropout draws from."""
    made = [_entry("rng/cpu", torch.get_rng_state())]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        made.append(_entry("rng/cuda", torch.cuda.get_rng_state()))
    return made


def _entry(name: str, value: torch.Tensor) -> Entry:
    return Entry(name, torch.uint8, value.numel(), lambda: value.clone())


def set_rng(shard: ShardReader | None, *, seed: str) -> None:
    """Set torch's generators as they were; another number of ranks draws anew, differently on each."""
    if shard is None:
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big"))
        return
    if (cpu := shard.get("rng/cpu")) is not None:
        torch.set_rng_state(cpu.clone())
    if (cuda := shard.get("rng/cuda")) is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda.clone())
