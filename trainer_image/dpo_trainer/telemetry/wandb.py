"""Weights & Biases: one run for one job, through its own client, which is an optional dependency.

Same curve names as TRL: train/..., eval/..., over train/global_step. Nothing but numbers and the job's spec
is handed over: no code, no console, no host facts. The client works in a process of its own, and only rank 0 starts it.
"""

import math
import os
import sys
from pathlib import Path
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.training import WandB
from dpo_operator.api.types import DPOJob
from dpo_trainer.telemetry.output import Output, Record, Start

_STEP = "train/global_step"
# How long a run waits for the service at its start and at its end.
_TIMEOUT_SECONDS = 30.0


class WandBRun:
    """The job's run. A failure is logged once and ends the logging, not the training."""

    def __init__(self, settings: WandB, job: DPOJob, folder: Path) -> None:
        """folder: the client makes a folder wandb in it, with all that it writes."""
        self._settings, self._job, self._folder = settings, job, folder
        self._run: Any = None
        self._broken = False

    def write(self, record: Record) -> None:
        """Log what is finite under the names of TRL's curves. The first call connects."""
        if self._broken:
            return
        key = ""
        try:
            key = self._key()
            self._run = self._run or self._open(key)
            finite = {name: value for name, value in record.curves().items() if math.isfinite(value)}
            self._run.log({_STEP: record.step} | finite)
        except Exception as error:  # any error of the client or the network
            self._broken = True
            text = "the package is not installed (pip install wandb)" if isinstance(error, ImportError) else str(error)
            said = text.replace(key, "***") if key else text
            print(
                f"Weights & Biases: nothing is logged from step {record.step} on: {said}", file=sys.stderr, flush=True
            )

    def sync(self) -> None:
        """Nothing to do: the client keeps its own files."""

    def rewind(self, step: int) -> None:
        """Nothing to do: what was logged can't be taken back, and repeated steps are added to it."""

    def close(self, exit_code: int) -> None:
        """End the run; unsent data stays in the folder for `wandb sync`."""
        if self._run is None:
            return
        run, self._run, self._broken = self._run, None, True
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            print(f"Weights & Biases: the run did not end well: {error}", file=sys.stderr, flush=True)

    def _key(self) -> str:
        """The API key, from its file alone: a variable would show in every process. Empty in mode offline."""
        if self._settings.mode == "offline":
            return ""
        path = Path(os.environ.get(names.ENV_WANDB_KEY_FILE, names.WANDB_KEY_FILE))
        try:
            key = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(
                f"mode online needs an API key in the file {path} ({names.ENV_WANDB_KEY_FILE} names another): {error.strerror}"
            ) from error
        if not key:
            raise ValueError(f"{path}: expected an API key, found an empty file")
        return key

    def _open(self, key: str) -> Any:
        import wandb

        metadata = self._job.metadata
        run = wandb.init(
            project=self._settings.project,
            entity=self._settings.entity,
            mode=self._settings.mode,
            dir=self._folder,
            # The same for each attempt, so that a restart continues the same curves.
            id=f"{metadata.name}-{metadata.uid}" if metadata.uid else metadata.name,
            name=metadata.name,
            resume="allow",
            # Without pod: its variables may be private.
            config=self._job.spec.model_dump(mode="json", by_alias=True, exclude={"pod"}),
            allow_val_change=True,
            settings=wandb.Settings(
                api_key=key or None,
                init_timeout=_TIMEOUT_SECONDS,
                finish_timeout=_TIMEOUT_SECONDS,
                console="off",
                silent=True,
                save_code=False,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                x_save_requirements=False,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
            ),
        )
        run.define_metric("*", step_metric=_STEP)
        return run


def output(start: Start) -> Output | None:
    """The job's run, if spec.tracking.wandb is set."""
    if start.job is None or (settings := start.job.spec.tracking.wandb) is None:
        return None
    return WandBRun(settings, start.job, start.work.root)
