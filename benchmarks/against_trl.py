"""The same pairs through this trainer and through TRL's DPOTrainer, in turns: `make bench-trl`.

Each run is a process of its own with one thread. What is timed is the work on the pairs (reference log-probs and optimizer
steps), from the first forward pass (for TRL with precomputed log-probs, from the making of the trainer that computes them, about 1% more)
to the last update; imports and the loading of the model are not. Pairs, their order, the
optimizer and the number of steps are the same, and so are the losses, which are compared step by step.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import inputs
from benchmarks.inputs import REPOSITORY, SHAPES, TUNED
from tests import tied
from tests.scratch import scratch_folder

SIDES = ("ours", "trl-best", "trl-plain")
# Shape, adapter, allocator, and what the project promises: pairs/s and peak memory as multiples of TRL's best.
CASES = (
    ("S", False, "tuned", 3.0, 0.62),
    ("M", False, "tuned", 2.2, 0.68),
    ("S", False, "stock", 4.5, 0.62),
    ("M", False, "stock", 2.7, 0.68),
    ("S", True, "tuned", 2.8, None),
)
Run = dict[str, Any]


def run_side(side: str, folder: Path, *, adapter: bool, allocator: str) -> Run:
    """One side in a process of its own; what it measured."""
    with scratch_folder() as scratch:
        command = [sys.executable, "-m", "benchmarks.against_trl_side", side, str(folder), scratch, str(int(adapter))]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        environment = {**kept, "OMP_NUM_THREADS": "1", **(TUNED if allocator == "tuned" else {})}
        done = tied.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def compare(
    title: str, runs: dict[str, list[Run]], promised: tuple[float | None, float | None] = (None, None)
) -> Table:
    """Table of one case: medians of the runs, and of their ratios turn by turn."""
    columns = (
        "",
        "pairs/s",
        "× TRL's best",
        "with checkpoint",
        "peak RSS, MiB",
        "× TRL's best",
        "largest loss difference",
    )
    table = Table(*columns, title=title)
    base = runs.get("trl-best", next(iter(runs.values())))

    def median(key: str, side: str) -> float:
        return statistics.median(run[key] for run in runs[side])

    for side, found in runs.items():
        with_save = f"{median('pairs_per_second_saved', side):.2f}" if "pairs_per_second_saved" in found[0] else ""
        table.add_row(
            side, f"{median('pairs_per_second', side):.2f}", f"{_ratio(found, base, 'pairs_per_second'):.2f}", with_save,
            f"{median('peak_mib', side):,.0f}", f"{_ratio(found, base, 'peak_mib'):.2f}", f"{_loss_difference(found, base):.1e}",
        )  # fmt: skip
    speed, memory = promised
    table.caption = " ".join(
        text for text, value in ((f"promised: {speed}× the pairs/s", speed), (f"{memory}× the memory", memory)) if value
    )
    return table


def shortfalls(runs: dict[str, list[Run]], speed: float, memory: float | None) -> list[str]:
    """Sentences about what is not as promised; none without both sides."""
    if "ours" not in runs or "trl-best" not in runs:
        return []
    ours, base, found = runs["ours"], runs["trl-best"], []
    if (worst := _loss_difference(ours, base)) > 1e-3:
        found.append(f"losses differ by {worst:.1e}")
    if (faster := _ratio(ours, base, "pairs_per_second")) < speed:
        found.append(f"expected {speed} times the pairs/s, found {faster:.2f}")
    if memory is not None and (larger := _ratio(ours, base, "peak_mib")) > memory:
        found.append(f"expected {memory} times the memory, found {larger:.2f}")
    return found


def _ratio(found: list[Run], base: list[Run], key: str) -> float:
    """Median of the turns' ratios."""
    return statistics.median(a[key] / b[key] for a, b in zip(found, base, strict=True))


def _loss_difference(found: list[Run], base: list[Run]) -> float:
    """Largest difference of a step's loss."""
    return max(abs(a - b) for a, b in zip(found[0]["losses"], base[0]["losses"], strict=True))


def breakdown(name: str, run: Run) -> Table:
    """Where one run's time went, and the least that each part could take."""
    parts, total = run["parts"], sum(run["parts"].values())
    table = Table("part", "seconds", "share", "floor, s", "× its floor", title=f"{name}: where the time goes")
    for part, seconds in parts.items():
        floor = run["floors"].get(part, 0.0)
        table.add_row(
            part,
            f"{seconds:.2f}",
            f"{seconds / total:.0%}",
            f"{floor:.2f}" if floor else "0",
            f"{seconds / floor:.2f}" if floor else "",
        )
    floor = sum(run["floors"].values())
    table.add_row("all", f"{total:.2f}", "100%", f"{floor:.2f}", f"{total / floor:.2f}", style="bold")
    table.caption = (
        f"floors: matrix products at {run['gflops']:.0f} GFLOP/s (a square one, measured in the same process), the optimizer's state read "
        f"and written once at {run['gbytes']:.0f} GB/s; the reference pass is {run['reference_share']:.0%} of the time"
    )
    return table


def main() -> None:
    """Print a table for each case, then where the time of one run of each shape goes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["trl-best", "ours"])
    parser.add_argument("--times", type=int, default=5, help="runs of each side, in turns; medians are printed")
    parser.add_argument("--allocators", nargs="+", choices=("tuned", "stock"), default=["tuned", "stock"])
    parser.add_argument("--adapters", nargs="+", choices=("none", "lora"), default=["none", "lora"])
    parser.add_argument("--no-breakdown", action="store_true", help="leave out where the time goes")
    inputs.add_arguments(parser)
    options = parser.parse_args()
    console, missed = Console(width=140), list[str]()
    with scratch_folder() as scratch:
        folders = {name: Path(scratch) / name for name in options.shapes}
        for name, folder in folders.items():
            inputs.make_data(folder, options.dialogues, options.tokenizer, pairs=SHAPES[name].pairs)
            inputs.make_model(folder, SHAPES[name])
        for name, adapter, allocator, *promised in CASES:
            wanted = allocator in options.allocators and ("lora" if adapter else "none") in options.adapters
            if name not in folders or not wanted:
                continue
            runs: dict[str, list[Run]] = {side: [] for side in options.sides}
            for _ in range(options.times):
                for side in options.sides:
                    runs[side].append(run_side(side, folders[name], adapter=adapter, allocator=allocator))
            missed += shortfalls(runs, *promised)
            title = f"{name}, {'LoRA r 8' if adapter else 'all weights'}, {allocator} allocator, {options.times} runs"
            console.print(compare(title, runs, tuple(promised)))
        for name in () if options.no_breakdown else folders:
            console.print(breakdown(name, run_side("breakdown", folders[name], adapter=False, allocator="tuned")))
    if missed:
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
