"""Ranks that stop or die at a chosen moment of the real training loop."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from dpo_operator.api.types import DPOJob
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.runtime.job import stop_on_request
from dpo_trainer.runtime.stop import StopRequest
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.telemetry.metrics_file import read_metrics
from tests.numerics.jobs import a_job, make_model, some_pairs

STEPS = 6
CLOCK = ("time", "step_seconds")


def job(*, every_steps: int, keep_last: int = 2, lora: bool = False, **training: Any) -> dict[str, Any]:
    """Six steps of two pairs each over five pairs, so that epochs end inside; adapters have dropout."""
    document = a_job(globalBatchSize=2, microBatchSize=1, maxSteps=STEPS, **training)
    document["spec"]["checkpoint"] = {"everySteps": every_steps, "keepLast": keep_last}
    if lora:
        document["spec"]["adapter"] = {"type": "lora", "rank": 3, "dropout": 0.3, "targetModules": ["q_proj", "v_proj"]}
    return document


def folder(root: Path, *, pairs: PairDataset | None = None, layers: int = 1) -> WorkDir:
    """A prepared work folder. One layer has all that a checkpoint holds, and trains in two thirds of the time of two."""
    work = WorkDir(root)
    make_model(work.model, layers=layers)
    (pairs or some_pairs(5)).save(work.train_data)
    return work


def curve(root: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl from the first step on without the clock: what may not differ between two runs of the same numbers."""
    return [line for line in _lines(root) if line["step"]]


def beginning(root: Path) -> list[dict[str, Any]]:
    """The same of what is measured before the first step."""
    return [line for line in _lines(root) if not line["step"]]


def _lines(root: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(root / "metrics.jsonl")]


def train_until(
    document: dict[str, Any],
    root: Path,
    attempt: int,
    *,
    stop_after: int | None = None,
    kill_after: tuple[int, int] | None = None,
    kill_in_save: tuple[int, int, str] | None = None,
    kill_at: tuple[int, float] | None = None,
    terminate_in_saves: tuple[int, str] | None = None,
) -> dict[str, Any]:
    """Be one rank of a run.

    terminate_in_saves: rank, and sub-step of every save at which that rank gets SIGTERM.
    kill_at: rank, and processor seconds that it lives, whatever it does then.
    stop_after: ask this run to stop, as SIGTERM does, after a step; on one rank alone, the second where there is one.
    kill_after: rank and step after which that rank is killed. kill_in_save: rank, step and sub-step of a save.
    """
    from dpo_trainer.checkpoint.store import Checkpoints
    from dpo_trainer.training import build, train

    rank, stop = int(os.environ["RANK"]), StopRequest() if terminate_in_saves is None else stop_on_request()
    every_steps = document["spec"]["checkpoint"]["everySteps"]
    if kill_at is not None and kill_at[0] == rank:
        threading.Thread(target=_kill_after, args=(kill_at[1],), daemon=True).start()

    seconds: list[float] = []

    class Interrupting(Telemetry):
        def begin(self, **news: Any) -> None:
            seconds.append(time.process_time())
            super().begin(**news)

        def step(self, step: int, **news: Any) -> None:
            super().step(step, **news)
            if stop_after == step and rank == min(1, self.progress.world_size - 1):
                stop.signal_name = "SIGTERM"
            if terminate_in_saves is not None and terminate_in_saves[0] == rank and step == every_steps + 1:
                # The save of the step before is in the background. On a slow disk the run would end before the signal.
                while not stop.is_set():
                    time.sleep(0.001)
            if kill_after == (rank, step):
                # The save that was begun before is in the background; which checkpoint is the newest must not be left to chance.
                due = (step - 1) // every_steps * every_steps
                while due and ((saved := self.progress.checkpoint) is None or saved.step < due):
                    time.sleep(0.001)
                os.kill(os.getpid(), signal.SIGKILL)

    telemetry = Interrupting(
        "train", attempt, WorkDir(root), rank=rank, local_rank=rank, world_size=int(os.environ["WORLD_SIZE"])
    )

    def observe(step: int, point: str) -> None:
        if kill_in_save == (rank, step, point):
            os.kill(os.getpid(), signal.SIGKILL)
        if terminate_in_saves == (rank, point):
            os.kill(os.getpid(), signal.SIGTERM)

    build.Checkpoints = partial(Checkpoints, observe=observe)  # type: ignore[misc]
    ended = train.run(DPOJob.model_validate(document), WorkDir(root), telemetry=telemetry, attempt=attempt, stop=stop)
    telemetry.close()
    progress = telemetry.progress
    return {
        "status": ended.status,
        "resumed_from": progress.resumed_from_step,
        "seconds": [*seconds, time.process_time()],
        "checkpoint": progress.checkpoint.model_dump() if progress.checkpoint else None,
    }


def _kill_after(seconds: float) -> None:
    """Kill this process when it has used so much processor time, which a busy machine does not change much."""
    while time.process_time() < seconds:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)
