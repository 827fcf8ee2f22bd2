"""The trainer's own loop on a benchmark's inputs, in this process, with a clock on it."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

BATCH, RATE = 8, 1e-5
LORA = {"type": "lora", "rank": 8, "alpha": 16.0, "targetModules": ["q_proj", "v_proj"]}


def a_job(*, adapter: bool, **training: Any) -> dict[str, Any]:
    """A DPOJob in fp32 on the CPU, pairs in the files' order; keyword arguments go to spec.training."""
    return {
        "metadata": {"name": "bench"},
        "spec": {
            "model": {"name": "bench"}, "data": {"train": {"source": "bench"}, "maxLength": 512},
            "adapter": LORA if adapter else {"type": "none"},
            "training": {
                "globalBatchSize": BATCH, "learningRate": RATE, "precision": "fp32", "device": "cpu", "shuffle": False,
                # The longest pair takes 621 tokens: less memory than with the default of 1,024, at about the same speed.
                "microBatchTokens": 640, "gradientCheckpointing": False, "scheduler": "constant", "warmupRatio": 0.0, **training,
            },
            "gpusPerNode": 0,
        },
    }  # fmt: skip


def train_here(document: dict[str, Any], folder: Path, scratch: Path) -> dict[str, Any]:
    """Run the loop with DeepSpeed, checkpoints and metrics, as the rank that RANK and WORLD_SIZE name.

    Returns "seconds": from the first reference log-prob to the last update, "reference_seconds": the part of it before the first
    step, "saved_seconds": to the end of the last checkpoint, "losses": by step.
    """
    from dpo_operator.api.types import DPOJob
    from dpo_trainer.runtime.stop import StopRequest
    from dpo_trainer.runtime.workdir import WorkDir
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.training import train

    work, rank = WorkDir(scratch / "work"), int(os.environ.get("RANK", "0"))
    if rank == 0:
        made = scratch / "making"
        shutil.copytree(folder / "data", made / "data")
        (made / "model").symlink_to((folder / "model").resolve())
        made.rename(work.root)
    while not work.root.exists():
        time.sleep(0.05)
    at: dict[str, float] = {}

    class Timed(Telemetry):
        def activity(self, text: str) -> None:
            if text.startswith("reference log-probs"):
                at.setdefault("start", time.monotonic())
            elif text.startswith("looking for a checkpoint"):
                at["referenced"] = time.monotonic()
            super().activity(text)

        def step(self, *arguments: Any, **update: Any) -> None:
            at["ended"] = time.monotonic()
            super().step(*arguments, **update)

    telemetry = Timed("train", 1, work, rank=rank, world_size=int(os.environ.get("WORLD_SIZE", "1")))
    train.run(DPOJob.model_validate(document), work, telemetry=telemetry, attempt=1, stop=StopRequest())
    saved = time.monotonic()
    telemetry.close()
    lines = [json.loads(line) for line in work.metrics.read_text().splitlines()] if rank == 0 else []
    return {
        "seconds": at["ended"] - at["start"],
        "reference_seconds": at["referenced"] - at["start"],
        "saved_seconds": saved - at["start"],
        "losses": [line["loss"] for line in lines if "loss" in line],
    }
