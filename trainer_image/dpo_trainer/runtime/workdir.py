"""Folders and files of one job, the same on a volume and for `dpo run`.

Everything below one root, so that a job can be moved, inspected and deleted as a folder. Whatever is written in
several steps is committed by a rename or by a manifest that is written last.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from dpo_operator.api import names


@dataclass(frozen=True)
class WorkDir:
    """Paths of one job's work folder."""

    root: Path

    @classmethod
    def from_environment(cls) -> "WorkDir":
        """Root from DPO_WORK_DIR, or the container's mount point."""
        return cls(Path(os.environ.get(names.ENV_WORK_DIR, names.WORK_DIR)))

    @property
    def prepared(self) -> Path:
        """Manifest of prepare, written last: what it made, from what, with which settings."""
        return self.root / "prepared.json"

    @property
    def model(self) -> Path:
        """Hugging Face folder: config, safetensors, tokenizer."""
        return self.root / "model"

    @property
    def train_data(self) -> Path:
        """Tokenized training pairs."""
        return self.root / "data" / "train"

    @property
    def eval_data(self) -> Path:
        """Tokenized evaluation pairs; absent without evaluation."""
        return self.root / "data" / "eval"

    @property
    def dropped_rows(self) -> Path:
        """JSON lines: split, row number, reason and detail of every row left out."""
        return self.root / "data" / "dropped.jsonl"

    @property
    def data_report(self) -> Path:
        """Dataset report of prepare as JSON, with the same as text (.txt) and as a picture (.png) in the same folder."""
        return self.root / "data" / "report.json"

    @property
    def reference(self) -> Path:
        """Cached reference log-probs."""
        return self.root / "reference"

    @property
    def reference_model(self) -> Path:
        """Hugging Face folder of another reference model; absent without one."""
        return self.root / "reference-model"

    @property
    def judge(self) -> Path:
        """What an endpoint's judgements cost and said, over all rounds."""
        return self.root / "judge"

    @property
    def judge_model(self) -> Path:
        """Hugging Face folder of the reward model that judges; absent without one."""
        return self.root / "judge-model"

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints, one folder each."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """JSON lines of training and evaluation metrics, each step once."""
        return self.root / "metrics.jsonl"

    @property
    def diagnosis(self) -> Path:
        """What the figures say about the run's learning, as JSON; see diagnosis.history."""
        return self.root / "diagnosis.json"

    @property
    def samples(self) -> Path:
        """JSON lines of answers to a few evaluation prompts, each prompt once a step; step 0 is the reference."""
        return self.root / "samples.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.root / "tensorboard"

    @property
    def export(self) -> Path:
        """The trained model or adapter."""
        return self.root / "export"

    @property
    def pushed(self) -> Path:
        """Where the export was copied to, reports.PushReport as JSON."""
        return self.root / "pushed.json"

    @property
    def report(self) -> Path:
        """Picture and table of the run."""
        return self.root / "report"
