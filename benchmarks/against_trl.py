"""The same pairs through this trainer and through TRL's DPOTrainer, in turns: `make bench-trl`.

Each run is a process of its own with one thread. What is timed is the work on the pairs (reference log-probs and optimizer
steps), from the first forward pass to the last update; imports and the loading of the model are not. Pairs, their order, the
optimizer and the number of steps are the same, and so are the losses, which are compared step by step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
MAX_LENGTH, BATCH, RATE = 512, 8, 1e-5
# What glibc is told so that it keeps the pages that a step frees for the next one.
TUNED = {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": "268435456"}


@dataclass(frozen=True)
class Shape:
    """A Llama with GPT-2's vocabulary. pairs: how many are trained on, in one epoch."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    pairs: int


SHAPES = {"S": Shape(256, 6, 8, 704, 24), "M": Shape(512, 8, 8, 1408, 16)}
SIDES = ("ours", "trl-best", "trl-plain")


def make_inputs(folder: Path, shape: Shape, dialogues: Path, tokenizer: Path) -> None:
    """Write a random model and the first pairs of an HH-like file as token ids."""
    import numpy as np
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    from dpo_trainer.dataset import PairDataset, TokenPair
    from dpo_trainer.truncation import Limits, truncate

    words = ByteLevelBPETokenizer(str(tokenizer / "encoder.json"), str(tokenizer / "vocab.bpe"))
    limits, mark, found = Limits(MAX_LENGTH, None, "keep_end"), "\n\nAssistant:", []
    for number, line in enumerate(dialogues.open(encoding="utf-8")):
        row = json.loads(line)
        (prompt, chosen), (other, rejected) = (row[name].rsplit(mark, 1) for name in ("chosen", "rejected"))
        if prompt == other and chosen.strip() and rejected.strip() and chosen != rejected:
            ids = [words.encode(text).ids for text in (prompt + mark, chosen, rejected)]
            parts = truncate(ids[0], [*ids[1], 50256], [*ids[2], 50256], limits)
            found.append(TokenPair(*(np.array(part, dtype=np.int32) for part in parts), number))
        if len(found) == shape.pairs:
            break
    PairDataset.from_pairs(found).save(folder / "data" / "train")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50257, hidden_size=shape.hidden, intermediate_size=shape.mlp, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")


def run_side(side: str, folder: Path, adapter: bool, settings: dict[str, str]) -> dict[str, Any]:
    """One side in a process of its own: pairs/s, peak memory, losses."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "benchmarks.against_trl_side", side, str(folder), scratch, str(int(adapter))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def compare(name: str, folder: Path, *, sides: Sequence[str], times: int, adapter: bool, tuned: bool) -> Table:
    """Run the sides in turns and make the table of one shape."""
    settings = TUNED if tuned else {}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(times):
        for side in sides:
            runs[side].append(run_side(side, folder, adapter, settings))
    title = f"{name}, {'LoRA r 8' if adapter else 'full weights'}, {'tuned' if tuned else 'stock'} allocator"
    table = Table("", "pairs/s", "ratio", "peak RSS, MiB", "ratio", "largest difference of a loss", title=title)
    base = "trl-best" if "trl-best" in sides else sides[0]

    def median(side: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[side])

    for side in sides:
        losses = [abs(a - b) for a, b in zip(runs[side][0]["losses"], runs[base][0]["losses"], strict=True)]
        table.add_row(
            side, f"{median(side, 'pairs_per_second'):.2f}",
            f"{median(side, 'pairs_per_second') / median(base, 'pairs_per_second'):.2f}×",
            f"{median(side, 'peak_mib'):,.0f}", f"{median(side, 'peak_mib') / median(base, 'peak_mib'):.2f}×",
            f"{max(losses):.1e}",
        )  # fmt: skip
    return table


def main() -> None:
    """Print a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES[:2]))
    parser.add_argument("--times", type=int, default=5, help="runs of each side; medians are printed")
    parser.add_argument("--lora", action="store_true", help="rank-8 adapters instead of all weights")
    parser.add_argument("--stock", action="store_true", help="leave glibc's allocator as it is")
    parser.add_argument("--dialogues", type=Path, required=True, help="an HH-RLHF .jsonl file")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with GPT-2's encoder.json and vocab.bpe")
    options = parser.parse_args()
    console = Console()
    for name in options.shapes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            make_inputs(folder, SHAPES[name], options.dialogues, options.tokenizer)
            console.print(
                compare(
                    name, folder, sides=options.sides, times=options.times, adapter=options.lora,
                    tuned=not options.stock,
                )
            )  # fmt: skip


if __name__ == "__main__":
    main()
