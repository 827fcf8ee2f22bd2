"""Ranks that stop or die at a chosen moment of the real training loop."""

import math
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.types import DPOJob
from dpo_trainer.dataset import PairDataset
from dpo_trainer.outcome import StopRequest
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.telemetry.metrics_file import read_metrics
from dpo_trainer.workdir import WorkDir
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


def folder(root: Path, *, pairs: PairDataset | None = None) -> WorkDir:
    """A prepared work folder."""
    work = WorkDir(root)
    make_model(work.model)
    (pairs or some_pairs(5)).save(work.train_data)
    return work


def curve(root: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without the clock: what may not differ between two runs of the same numbers."""
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(root / "metrics.jsonl")]


def assert_same_curve(found: list[dict[str, Any]], expected: list[dict[str, Any]], *, tolerance: float = 1e-5) -> None:
    """The same steps with the same numbers, to the last digits of float32.

    Where the allocator puts a tensor can change the order of a sum, so that two processes with the same weights may
    differ there. Accuracy is left out while nothing is learnt: a margin of zero has either sign then.
    """
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for ours, theirs in zip(found, expected, strict=True):
        undecided = abs(theirs.get("rewards/margins", 1.0)) < 1e-6
        leave_out = {"rewards/accuracies", "margin_length_correlation"} if undecided else set()
        # Null is a figure that nothing stands behind, such as the correlation of one pair.
        kept = [
            {k: math.nan if v is None else v for k, v in line.items() if k not in leave_out} for line in (ours, theirs)
        ]
        assert kept[0] == pytest.approx(kept[1], rel=tolerance, abs=tolerance, nan_ok=True), f"step {theirs['step']}"


def train_until(
    document: dict[str, Any],
    root: Path,
    attempt: int,
    *,
    stop_after: int | None = None,
    kill_after: tuple[int, int] | None = None,
    kill_in_save: tuple[int, int, str] | None = None,
) -> dict[str, Any]:
    """Be one rank of a run.

    stop_after: ask this run to stop, as SIGTERM does, after a step; on rank 1 alone.
    kill_after: rank and step after which that rank is killed. kill_in_save: rank, step and sub-step of a save.
    """
    import dpo_trainer.train as train
    from dpo_trainer.checkpoint.store import Checkpoints

    rank, stop = int(os.environ["RANK"]), StopRequest()

    class Interrupting(Telemetry):
        def step(self, step: int, **news: Any) -> None:
            super().step(step, **news)
            if stop_after == step and rank == 1:
                stop.signal_name = "SIGTERM"
            if kill_after == (rank, step):
                os.kill(os.getpid(), signal.SIGKILL)

    telemetry = Interrupting(
        "train", attempt, WorkDir(root), rank=rank, local_rank=rank, world_size=int(os.environ["WORLD_SIZE"])
    )

    def observe(step: int, point: str) -> None:
        if kill_in_save == (rank, step, point):
            os.kill(os.getpid(), signal.SIGKILL)

    train.Checkpoints = partial(Checkpoints, observe=observe)  # type: ignore[misc]
    ended = train.run(DPOJob.model_validate(document), WorkDir(root), telemetry=telemetry, attempt=attempt, stop=stop)
    telemetry.close()
    progress = telemetry.progress
    return {
        "status": ended.status,
        "resumed_from": progress.resumed_from_step,
        "checkpoint": progress.checkpoint.model_dump() if progress.checkpoint else None,
    }
