"""A large model over many ranks, without it: bytes of each rank for load, state, checkpoint and export, beside the plan's.

`python -m benchmarks.large` lays the shape of Llama 3 70B out over 64 ranks, one after another in this process, as the trainer does: its names
and sizes come from transformers on the meta device, the slices, shard files and manifest from the trainer's own functions. Some ranks really read their slices,
from weight files of the right size that have no content, and one weight file of the export is really written, from zeros. It fails when the plan is off by more than 10%, or when this process ever held a tenth of the model.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dpo_operator.api.models.config import shape_of
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.sizing import export as stored
from dpo_operator.sizing import memory
from dpo_operator.sizing.work import Pairs

# The shape of Llama 3 70B.
LLAMA_70B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256, "tie_word_embeddings": False, "dtype": "bfloat16",
    "max_position_embeddings": 8192,
}  # fmt: skip
RANKS, GPUS_OF_A_NODE = 64, 8
# Largest relative error of the plan, and largest share of the model that may be in memory.
TOLERANCE, LARGEST_SHARE = 0.10, 0.10
GIB, GB = 1 << 30, 1e9


def measure(config: dict[str, Any], ranks: int, *, written: int = 1) -> list[dict[str, Any]]:
    """A line for each part: least and most bytes of a rank, the plan's, and this process's peak until then.

    written: how many weight files of the export are written for real.
    """
    import torch

    from dpo_trainer.checkpoint.shard import Entry, file_size
    from dpo_trainer.checkpoint.slices import KINDS, held, slices_of
    from dpo_trainer.model.load import bare_model

    nodes, gpus = (ranks // GPUS_OF_A_NODE, GPUS_OF_A_NODE) if ranks % GPUS_OF_A_NODE == 0 else (1, ranks)
    spec = DPOJobSpec.model_validate(
        {"model": {"name": "m"}, "data": {"train": {"source": "d"}}, "nodes": nodes, "gpusPerNode": gpus}
    )
    shape = shape_of(config)
    pairs = Pairs.of(spec, None)
    plan, planned = memory.estimate(shape, spec, pairs), stored.estimate(shape, spec, pairs)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(config))
        model = bare_model(Path(scratch), torch.bfloat16)
    numels = {name: parameter.numel() for name, parameter in model.named_parameters()}
    lines = []

    def line(part: str, sizes: Sequence[float], expected: float) -> None:
        worst = max((size / expected for size in sizes), key=lambda ratio: abs(ratio - 1))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        lines.append(
            {"part": part, "least": min(sizes), "most": max(sizes), "plan": expected, "ratio": worst, "peak": peak}
        )

    size = torch.bfloat16.itemsize
    parts = [slices_of(numels, rank, ranks) for rank in range(ranks)]
    loaded = [sum(size * held(numel, ranks) for numel in numels.values()) for _ in range(ranks)]
    some = {rank: _read(model, torch.bfloat16, rank, ranks) for rank in sorted({0, ranks // 2, ranks - 1})}
    line("load: read by a rank", list(some.values()), plan.lasting["weights"])
    line("load: weights of a rank", loaded, plan.lasting["weights"])
    state = ("weights", "fp32 master weights", "fp32 gradients", "optimizer state")
    each = size + 4 + 4 + 8
    line(
        "state: with gradients, masters, moments",
        [each / size * one for one in loaded],
        sum(plan.lasting[p] for p in state),
    )
    files = [
        file_size([
            Entry(f"{kind}/{name}", torch.float32, end - start, lambda: torch.empty(0))
            for kind in KINDS for name, (start, end) in part.items()
        ])
        for part in parts
    ]  # fmt: skip
    line("checkpoint: a rank's file", files, planned.checkpoint)
    _check_manifest(model, files, ranks)
    line("export: all files", [_export(model, torch.bfloat16, written)], planned.export)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines.append(
        {"part": "export: memory", "least": peak, "most": peak, "plan": planned.memory, "ratio": None, "peak": peak}
    )
    return lines


def _read(model: Any, dtype: Any, rank: int, ranks: int) -> int:
    """Bytes that a rank reads of the model's files, one weight after another. The files are as large as real ones and empty."""
    from dpo_trainer.checkpoint.shard import header_bytes
    from dpo_trainer.engine.loading import slice_of
    from dpo_trainer.export.files import FORMAT, weight_shards, write_index
    from dpo_trainer.model.weight_files import WeightFiles

    with tempfile.TemporaryDirectory() as scratch:
        parts = weight_shards(_entries(model, dtype))
        for name, part in parts.items():
            with (Path(scratch) / name).open("wb") as file:
                file.write(start := header_bytes(part, FORMAT))
                file.truncate(len(start) + sum(entry.size for entry in part))
        if len(parts) > 1:
            write_index(parts, Path(scratch))
        files = WeightFiles(Path(scratch))
        slices = (slice_of(files.tensor(name), rank, ranks).clone() for name, _ in model.named_parameters())
        return sum(part.numel() * part.element_size() for part in slices)


def _check_manifest(model: Any, files: Sequence[int], ranks: int) -> None:
    """The checkpoint's manifest, written and read: it must be below its largest size."""
    from dpo_trainer.checkpoint import layout
    from dpo_trainer.checkpoint.loop_state import LoopState
    from dpo_trainer.checkpoint.manifest import MAX_MANIFEST_BYTES, File, Manifest, Parameter, parse_manifest

    loop = LoopState(
        step=1, epoch=1.0, pairs_seen=1, total_steps=1, train={"loss": 0.0}, eval=None, evaluations=(), selection_metric="eval_loss", finished="",
    )  # fmt: skip
    manifest = Manifest(
        step=1, attempt=1, world_size=ranks, time=time.time(), identity={}, adam_step=1, state=loop, metrics={}, versions={},
        parameters={n: Parameter(shape=tuple(p.shape), dtype="bfloat16") for n, p in model.named_parameters()},
        files={layout.shard_name(rank): File(size=size, sha256="0" * 64) for rank, size in enumerate(files)},
    )  # fmt: skip
    content = manifest.to_bytes()
    assert len(content) <= MAX_MANIFEST_BYTES
    assert parse_manifest(content, layout.folder_name(1)) == manifest


def _export(model: Any, dtype: Any, written: int) -> int:
    """Bytes of all weight files as the export lays them out; the first ones are written for real and must have the size that was said."""
    from dpo_trainer.checkpoint.shard import file_size, write_shard
    from dpo_trainer.export.files import FORMAT, weight_shards

    total = 0
    for number, part in enumerate(weight_shards(_entries(model, dtype)).values()):
        total += (size := file_size(part, FORMAT))
        if number < written:
            with tempfile.TemporaryDirectory() as scratch:
                assert write_shard(Path(scratch) / "part.safetensors", part, metadata=FORMAT).size == size
    return total


def _entries(model: Any, dtype: Any) -> list[Any]:
    """A model's weights as tensors to write, zeros."""
    import torch

    from dpo_trainer.checkpoint.shard import Entry

    return [
        Entry(name, dtype, p.numel(), lambda p=p: torch.zeros(p.shape, dtype=dtype), tuple(p.shape))
        for name, p in model.named_parameters()
    ]


def problems(lines: Sequence[dict[str, Any]], model: float) -> list[str]:
    """What is out of bounds. model: bytes of the whole model."""
    found = [
        f"{line['part']}: {line['ratio']:.3f} of the plan"
        for line in lines
        if line["ratio"] is not None and abs(line["ratio"] - 1) > TOLERANCE
    ]
    peak = max(line["peak"] for line in lines)
    if peak > max(LARGEST_SHARE * model, 2 * memory.CPU_RUNTIME):
        found.append(f"this process held {peak / GIB:.1f} GiB of a model of {model / GIB:.1f} GiB")
    return found


def table(lines: Sequence[dict[str, Any]], model: float, ranks: int) -> Table:
    """The parts for people."""
    made = Table(
        title=f"A model of {model / GB:.0f} GB over {ranks} ranks", caption="GB of a rank, least and most of all"
    )
    made.add_column("part", no_wrap=True)
    for name in ("least", "most", "plan", "ratio", "peak of this process, GiB"):
        made.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        ratio = "" if line["ratio"] is None else f"{line['ratio']:.3f}"
        made.add_row(
            line["part"],
            f"{line['least'] / GB:.3f}",
            f"{line['most'] / GB:.3f}",
            f"{line['plan'] / GB:.3f}",
            ratio,
            f"{line['peak'] / GIB:.2f}",
        )
    return made


def main() -> None:
    """Print the table; exits with 1 when something is out of bounds."""
    parser = argparse.ArgumentParser(prog="benchmarks.large", description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=RANKS)
    parser.add_argument("--written", type=int, default=1, help="weight files of the export that are written, 5 GB each")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    given = parser.parse_args()
    lines, model = measure(LLAMA_70B, given.ranks, written=given.written), 2.0 * shape_of(LLAMA_70B).parameters
    out = Console(highlight=False)
    if given.json:
        print(json.dumps(lines, indent=1))
    else:
        (out if out.is_terminal else Console(width=140, highlight=False)).print(table(lines, model, given.ranks))
    if found := problems(lines, model):
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
