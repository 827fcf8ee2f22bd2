"""Small shards and checkpoints of one rank, for tests of the checkpoint protocol."""

from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.loop_state import LoopState
from dpo_trainer.checkpoint.manifest import MANIFEST, File, Manifest, Parameter
from dpo_trainer.checkpoint.shard import Entry, write_shard
from dpo_trainer.runtime.files import write_synced


def entry(name: str, values: torch.Tensor) -> Entry:
    return Entry(name, values.dtype, values.numel(), lambda: values)


ENTRIES = [
    entry("fp32/w", torch.arange(7.0)),
    entry("fp32/b", torch.ones(1)),
    entry("rng/cpu", torch.arange(5, dtype=torch.uint8)),
]


def loop_state(step: int, **changes: Any) -> LoopState:
    """State of a loop that has finished `step` of 100 steps."""
    plain: dict[str, Any] = {
        "step": step, "epoch": 0.5, "pairs_seen": step, "total_steps": 100, "train": {"loss": 0.5}, "eval": None,
        "evaluations": (), "selection_metric": "eval_loss", "finished": "",
    }  # fmt: skip
    return LoopState(**plain | changes)


PLAIN_MANIFEST = Manifest(
    step=3, attempt=1, world_size=1, time=0.0, identity={"spec.training.seed": 1}, adam_step=3, state=loop_state(3),
    versions={"torch": "2"}, parameters={"w": Parameter(shape=(7,), dtype="float32")},
    files={layout.shard_name(0): File(size=1, sha256="0" * 64)}, metrics={"loss": 0.5, "selection": None},
)  # fmt: skip

# Includes values that the json module writes although JSON does not have them (NaN, infinity).
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.integers(10**18, 10**30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def a_checkpoint(root: Path, step: int, *, selection: float | None = None, attempt: int = 1) -> Path:
    """A committed checkpoint of one rank."""
    folder = root / layout.folder_name(step)
    folder.mkdir(parents=True)
    file = write_shard(folder / layout.shard_name(0), ENTRIES, lambda _: None)
    manifest = Manifest(
        step=step, attempt=attempt, world_size=1, time=0.0, identity={}, adam_step=step, state=loop_state(step), versions={},
        parameters={"w": Parameter(shape=(7,), dtype="float32")}, files={layout.shard_name(0): file},
        metrics={"selection": selection},
    )  # fmt: skip
    write_synced(folder / MANIFEST, manifest.to_bytes())
    return folder
