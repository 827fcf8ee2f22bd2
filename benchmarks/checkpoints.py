"""How long training waits for checkpoints, beside DeepSpeed's own synchronous save_checkpoint: `make bench-checkpoints`.

One run of the real loop saves by turns: one checkpoint as the product does, the next one with DeepSpeed. Model, state, volume
and neighbours are the same for both. Each run is a process of its own with one thread.

Printed are medians: of a step in whose time nothing is saved, of the time in which training waited for a save, and of what a save
costs in all, which is how much longer the steps from one save to the next took than so many plain steps.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import inputs
from benchmarks.inputs import REPOSITORY, SHAPES
from benchmarks.job import BATCH, RATE
from tests import tied
from tests.scratch import scratch_folder

_SIDES = ("ours", "deepspeed")


def side_of(step: int, gap: int) -> str:
    """Which side saves after a step; ours is first."""
    return _SIDES[(step // gap - 1) % 2]


def summary(
    steps: Sequence[tuple[float, float]], waits: Sequence[float], *, gap: int, every: int
) -> dict[str, dict[str, float]]:
    """Seconds by side, and shares of training time at one save every so many steps.

    steps: start and end of each step, seconds, from step 1 on. waits: seconds that training waited after step `gap`, twice that, …
    Of the steps that follow a save, the second half counts as plain: there the background has ended.
    """
    lengths = [end - start for start, end in steps]
    plain = statistics.median(length for i, length in enumerate(lengths) if i % gap >= gap // 2)
    found: dict[str, dict[str, float]] = {}
    for side in _SIDES:
        mine = [i for i in range(len(waits)) if side_of((i + 1) * gap, gap) == side]
        wait = statistics.median(waits[i] for i in mine)
        extra = statistics.median(sum(lengths[(i + 1) * gap : (i + 2) * gap]) - gap * plain for i in mine)
        share, cost = wait / (every * plain + wait), (wait + extra) / (every * plain + wait + extra)
        found[side] = {"saves": len(mine), "step": plain, "wait": wait, "share": share, "cost": cost}
    return found


def run_here(folder: Path, scratch: Path, *, saves: int, gap: int, every: int) -> dict[str, dict[str, float]]:
    """Train in this process with the trainer's own loop, in which every second save is DeepSpeed's."""
    import shutil

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.checkpoint.loop_state import LoopState
    from dpo_trainer.checkpoint.store import Checkpoints
    from dpo_trainer.engine.engine import Engine
    from dpo_trainer.runtime.stop import StopRequest
    from dpo_trainer.runtime.workdir import WorkDir
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.training import build, train

    work = WorkDir(scratch / "work")
    work.root.mkdir()
    shutil.copytree(folder / "data", work.root / "data")
    (work.root / "model").symlink_to(folder / "model")
    engines: list[Engine] = []
    waits: list[float] = []
    ended: list[tuple[float, float]] = []

    class Known(Engine):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            engines.append(self)

    class ByTurns(Checkpoints):
        def save(self, state: Any, loop: LoopState, *, last: bool = False) -> None:
            step = loop.step
            if step % gap:
                return  # the end of the run, which has nothing to do with the measurement
            began = time.monotonic()
            if side_of(step, gap) == "ours":
                super().save(state, loop, last=last)
            else:
                self.wait()
                target = scratch / "deepspeed"
                engines[0].deepspeed.save_checkpoint(str(target), tag=f"step-{step}")
            waits.append(time.monotonic() - began)
            shutil.rmtree(scratch / "deepspeed", ignore_errors=True)

    class Clock(Telemetry):
        def step(self, step: int, *, seconds: float, **update: Any) -> None:
            now = time.monotonic()
            ended.append((now - seconds, now))
            super().step(step, seconds=seconds, **update)

    build.Engine, build.Checkpoints = Known, ByTurns  # type: ignore[misc]
    job = DPOJob.model_validate({
        "metadata": {"name": "bench"},
        "spec": {
            "model": {"name": "bench"}, "data": {"train": {"source": "bench"}},
            "training": {
                "globalBatchSize": BATCH, "learningRate": RATE, "precision": "fp32", "device": "cpu", "epochs": 1000.0,
                "maxSteps": (saves + 1) * gap, "gradientCheckpointing": False, "scheduler": "constant",
            },
            "checkpoint": {"everySteps": gap, "keepLast": 1},
            "gpusPerNode": 0,
        },
    })  # fmt: skip
    telemetry = Clock("train", 1, work)
    train.run(job, work, telemetry=telemetry, attempt=1, stop=StopRequest())
    telemetry.close()
    size = max(sum(f.stat().st_size for f in path.iterdir()) for path in work.checkpoints.iterdir() if path.is_dir())
    found = summary(ended, waits[:saves], gap=gap, every=every)
    found["ours"]["bytes"] = size
    return found


def table(name: str, runs: Sequence[dict[str, dict[str, float]]], every: int) -> Table:
    """One shape's medians over the runs."""
    size = runs[0]["ours"]["bytes"] / 2**20
    made = Table(
        "",
        "saves",
        "waited, s",
        "share of training time",
        "cost in all",
        title=f"{name}: {size:,.0f} MiB every {every} steps",
    )
    for side in _SIDES:
        middle = {key: statistics.median(run[side][key] for run in runs) for key in ("wait", "share", "cost", "step")}
        made.add_row(
            side, str(sum(int(run[side]["saves"]) for run in runs)), f"{middle['wait']:.2f}", f"{middle['share']:.2%}", f"{middle['cost']:.1%}"
        )  # fmt: skip
    waits = [statistics.median(run[side]["wait"] for run in runs) for side in _SIDES]
    made.caption = f"a plain step takes {statistics.median(run['ours']['step'] for run in runs):.2f} s; DeepSpeed waits {waits[1] / waits[0]:.0f}× as long"
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for each shape. Exit status 1 when training waited longer than --bar of its time for our saves."""
    parser = argparse.ArgumentParser(prog="benchmarks.checkpoints", description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--times", type=int, default=3, help="runs of each shape; medians are printed")
    parser.add_argument("--saves", type=int, default=4, help="saves of a run, half of them DeepSpeed's")
    parser.add_argument("--every", type=int, default=10, help="steps between two saves that the shares are for")
    parser.add_argument("--gap", type=int, default=10, help="steps between two saves of the measurement")
    parser.add_argument("--bar", type=float, default=0.035, help="largest allowed share")
    inputs.add_arguments(parser)
    # One run in this process, of the inputs in this folder.
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.run:
        import torch

        torch.set_num_threads(1)
        with scratch_folder() as scratch:
            found = run_here(options.run, Path(scratch), saves=options.saves, gap=options.gap, every=options.every)
        print(json.dumps(found))
        return 0
    worst = 0.0
    for name in options.shapes:
        with scratch_folder() as made:
            inputs.make_data(Path(made), options.dialogues, options.tokenizer, pairs=SHAPES[name].pairs)
            inputs.make_model(Path(made), SHAPES[name])
            command = [
                sys.executable, "-m", "benchmarks.checkpoints", "--run", made, "--saves", str(options.saves),
                "--every", str(options.every), "--gap", str(options.gap),
            ]  # fmt: skip
            runs = []
            for _ in range(options.times):
                done = tied.run(
                    command,
                    cwd=REPOSITORY,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    print(done.stderr[-3000:], file=sys.stderr)
                    return 1
                runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
        Console(highlight=False).print(table(name, runs, options.every))
        worst = max(worst, statistics.median(run["ours"]["share"] for run in runs))
    return int(worst > options.bar)


if __name__ == "__main__":
    sys.exit(main())
