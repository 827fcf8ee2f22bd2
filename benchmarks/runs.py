"""One run of the benchmark: the product's own phases as processes, and the metrics of the run."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpo_operator.api import names
from dpo_operator.api.data import Columns
from dpo_trainer.data.formats import Rejection, detect, normalize
from dpo_trainer.data.formats.pairs import TextPair
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import read_metrics
from tests import tied


class Failed(Exception):
    """A phase did not succeed; the message is the trainer's own."""


@dataclass(frozen=True)
class Dataset:
    """Preference data in a folder that has the dataset's name.

    train, evaluation: files in it ("." is the only one). Without evaluation, eval_fraction of the training pairs is held out.
    learning_rate: peak, for all weights. max_length: tokens of prompt and answer together.
    """

    name: str
    train: str
    learning_rate: float
    evaluation: str | None = None
    eval_fraction: float = 0.0
    max_length: int = 256

    def paired(self, folder: Path, limit: int | None) -> dict[str, Any]:
        """spec.data of the pairs as they are. limit: only the first rows of the training data."""
        train: dict[str, Any] = {"source": str((folder / self.train).resolve())} | ({"limit": limit} if limit else {})
        found: dict[str, Any] = {"train": train, "maxLength": self.max_length, "evalFraction": self.eval_fraction}
        return found | ({"eval": {"source": str((folder / self.evaluation).resolve())}} if self.evaluation else {})

    def unpaired(self, folder: Path) -> dict[str, Any]:
        """spec.data of what take_apart wrote to a folder."""
        return {
            "train": {"source": str(folder / "train.jsonl"), "format": "unpaired"},
            "eval": {"source": str(folder / "eval.jsonl"), "format": "pairs"},
            "maxLength": self.max_length,
        }


@dataclass(frozen=True)
class RunMetrics:
    """What one run left. Accuracies are shares of the evaluation pairs, losses are the method's own and not comparable.

    pairs_per_second: of training. error: standard error of the accuracy. baseline: the better of "the longer answer wins" and
    "the shorter answer wins". margin: mean reward margin.
    """

    steps: int
    pairs_per_second: float
    first_loss: float
    eval_loss: float
    accuracy: float
    error: float
    baseline: float
    margin: float
    eval_pairs: int


def prepare(job: dict[str, Any], work: Path) -> WorkDir:
    """Run the prepare phase; a folder that already holds the same model and data is kept. Raises Failed."""
    run_phase("prepare", job, work)
    return WorkDir(work)


def train(job: dict[str, Any], prepared: WorkDir, work: Path) -> RunMetrics:
    """Run the train phase in a new folder, on the model, the tokens and the cached reference of a prepared one. Raises Failed."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    prepared.reference.mkdir(exist_ok=True)
    for path in (prepared.prepared, prepared.model, prepared.train_data.parent, prepared.reference):
        (work / path.name).symlink_to(path.resolve())
    run_phase("launch", job, work)
    pairs = json.loads((prepared.eval_data / "meta.json").read_text())["pairs"]
    return run_metrics(read_metrics(WorkDir(work).metrics), eval_pairs=pairs)


def run_metrics(lines: list[dict[str, Any]], *, eval_pairs: int) -> RunMetrics:
    """Metrics of the table, from the lines of metrics.jsonl."""
    steps, last = [line for line in lines if "loss" in line], lines[-1]
    accuracy = last["eval_rewards/accuracies"]
    return RunMetrics(
        steps=steps[-1]["step"],
        pairs_per_second=sum(line["pairs"] for line in steps) / sum(line["step_seconds"] for line in steps),
        first_loss=steps[0]["loss"],
        eval_loss=last["eval_loss"],
        accuracy=accuracy,
        error=math.sqrt(accuracy * (1 - accuracy) / eval_pairs),
        baseline=last["eval_length_baseline_accuracy"],
        margin=last["eval_rewards/margins"],
        eval_pairs=eval_pairs,
    )


def take_apart(dataset: Dataset, source: Path, prepared: WorkDir, folder: Path) -> None:
    """Write the training pairs of a prepared folder as unpaired rows, and its evaluation pairs as pairs.

    source: folder of the dataset, from which that folder was prepared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train = _texts(source / dataset.train, prepared.train_data)
    evaluation = _texts(source / (dataset.evaluation or dataset.train), prepared.eval_data)
    apart = [
        {"prompt": pair.prompt, "completion": answer, "label": answer is pair.chosen}
        for pair in train
        for answer in (pair.chosen, pair.rejected)
    ]
    pairs = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in evaluation]
    for name, rows in (("train", apart), ("eval", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _texts(source: Path, tokens: Path) -> list[TextPair]:
    """Text of the pairs in a folder of tokens, in the order of the source's rows."""
    file = next(path for path in sorted(source.iterdir()) if path.suffix == ".json") if source.is_dir() else source
    text = file.read_text(encoding="utf-8")
    rows = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.split("\n") if line]
    row_format = detect(rows[:64], Columns())
    assert row_format is not None, "prepare read the same rows"
    found = [normalize(rows[number], row_format, Columns()) for number in sorted(np.load(tokens / "rows.npy").tolist())]
    assert not any(isinstance(pair, Rejection) for pair in found), "prepare kept these rows"
    return found  # type: ignore[return-value]


def run_phase(command: str, job: dict[str, Any], work: Path, variables: Mapping[str, str] | None = None) -> None:
    """Run a phase with its output in a log beside it. variables: of its environment. Raises Failed."""
    work.mkdir(parents=True, exist_ok=True)
    job_file, log = work / "job.json", work / f"{command}.log"
    job_file.write_text(json.dumps(job, indent=1))
    argv = [sys.executable, "-m", "dpo_trainer", command, "--job-file", str(job_file), "--work-dir", str(work)]
    environment = {
        "OMP_NUM_THREADS": "1", **os.environ, names.ENV_METRICS_PORT: "0", "DPO_BIND_ADDRESS": "127.0.0.1", **(variables or {}),
    }  # fmt: skip
    with log.open("wb") as out:
        done = tied.run(argv, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False)
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
        raise Failed(f"{command} ended with exit code {done.returncode}: {lines[-1]} (all of it: {log})")
