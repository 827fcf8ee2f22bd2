"""Folders and files of one job, the same on a volume and for `dpo run`.

Everything below one root, so that a job can be moved, inspected and deleted as a folder. Whatever is written in
several steps is committed by a rename or by a manifest that is written last.

A leg is one training of several in a job, a round or a point of a sweep's grid: a folder below the root with the layout of the root. What
legs have in common lies at the root alone: the prepared model and data, reference log-probs (their names say what they belong to), the report.
A round trains on data of its own, a sweep's leg on those of the job.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from dpo_operator.api import names


@dataclass(frozen=True)
class WorkDir:
    """Paths of one job's work folder, and of one leg in it. leg: its folder, relative to the root; empty for a job without legs."""

    root: Path
    leg: str = ""

    @classmethod
    def from_environment(cls) -> "WorkDir":
        """Root from DPO_WORK_DIR, or the container's mount point."""
        return cls(Path(os.environ.get(names.ENV_WORK_DIR, names.WORK_DIR)))

    @classmethod
    def of_checkpoint(cls, folder: Path) -> "WorkDir":
        """The work folder that a checkpoint is in, and its round or leg. folder: of the checkpoint."""
        leg = folder.parents[1]
        if leg.parent.name in ("rounds", "legs") and re.fullmatch(r"\d{4}", leg.name, re.ASCII):
            return cls(leg.parents[1], f"{leg.parent.name}/{leg.name}")
        return cls(leg)

    def round(self, number: int) -> "WorkDir":
        """The leg of a round, counted from 1; for 0 the job itself."""
        return replace(self, leg=names.round_folder(number))

    def of_sweep(self, number: int) -> "WorkDir":
        """A leg of a sweep, counted from 1; for 0 the job itself."""
        return replace(self, leg=names.leg_folder(number))

    @property
    def number(self) -> int:
        """Of the round; 0 for a job without rounds, and for what all rounds have in common."""
        return self._number("rounds")

    @property
    def sweep_number(self) -> int:
        """Of the leg of a sweep; 0 for a job without a sweep, and for what all legs have in common."""
        return self._number("legs")

    def _number(self, kind: str) -> int:
        folder, _, number = self.leg.partition("/")
        return int(number) if folder == kind else 0

    @property
    def own(self) -> Path:
        """Folder of the leg; the root without one."""
        return self.root / self.leg

    @property
    def rounds(self) -> list[int]:
        """Numbers of the rounds that have a folder, in their order. Raises OSError."""
        return self._numbers("rounds")

    @property
    def legs(self) -> list[int]:
        """Numbers of the legs of a sweep that have a folder, in their order. Raises OSError."""
        return self._numbers("legs")

    def _numbers(self, kind: str) -> list[int]:
        folder = self.root / kind
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if re.fullmatch(r"\d{4}", name, re.ASCII))

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
        return (self.own if self.number else self.root) / "data" / "train"

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
    def generator_logps(self) -> Path:
        """Log-probs that the policy gave the answers of train_data when it generated them: float64 [pairs, 2], nats; of rounds alone."""
        return self.own / "data" / "logps.npy"

    @property
    def prompts(self) -> Path:
        """Prompts that rounds answer."""
        return self.root / "data" / "prompts"

    @property
    def generated(self) -> Path:
        """A round's answers to its prompts, in units."""
        return self.own / "generated"

    @property
    def compared(self) -> Path:
        """Answers of the policy with which a round begins to the prompts of the win rates, in units."""
        return self.own / "compared"

    @property
    def judged(self) -> Path:
        """What the judge says of a round's answers, in units."""
        return self.own / "judged"

    @property
    def round_report(self) -> Path:
        """Figures of a round, written last."""
        return self.own / "round.json"

    @property
    def leg_report(self) -> Path:
        """Figures of a sweep's leg, written when it has ended."""
        return self.own / "leg.json"

    @property
    def chosen_leg(self) -> Path:
        """Which leg of a sweep is exported, and the figures of all."""
        return self.root / "legs" / "chosen.json"

    @property
    def resumed(self) -> Path:
        """Which checkpoint of another job training began with, reports.ResumeReport as JSON; absent without one."""
        return self.root / "resumed.json"

    @property
    def chosen(self) -> Path:
        """Which round is exported, where it is not the last one."""
        return self.root / "rounds" / "chosen.json"

    @property
    def reference(self) -> Path:
        """Cached reference log-probs of all legs."""
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
        return self.own / "checkpoints"

    @property
    def metrics(self) -> Path:
        """JSON lines of training and evaluation metrics, each step once."""
        return self.own / "metrics.jsonl"

    @property
    def diagnosis(self) -> Path:
        """What the figures say about the run's learning, as JSON; see diagnosis.history."""
        return self.own / "diagnosis.json"

    @property
    def selection(self) -> Path:
        """Which pairs training.selection keeps, for each epoch that ranks them; see batches.rankings."""
        return self.own / "selection"

    @property
    def samples(self) -> Path:
        """JSON lines of answers to a few evaluation prompts, each prompt once a step; step 0 is the reference."""
        return self.own / "samples.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.own / "tensorboard"

    @property
    def export(self) -> Path:
        """The trained model or adapter."""
        return self.own / "export"

    @property
    def pushed(self) -> Path:
        """Where the export was copied to, reports.PushReport as JSON."""
        return self.root / "pushed.json"

    @property
    def report(self) -> Path:
        """Picture and table of the run."""
        return self.root / "report"
