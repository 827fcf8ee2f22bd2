"""A model, data and a work folder for tests of prepare."""

import json
from pathlib import Path

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.types import DPOJob
from dpo_trainer.prepare import phase as prepare
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir
from tests.unit.trainer.tiny import tiny_model, write_jsonl


def rows(count: int, **extra) -> list[dict]:
    return [{"prompt": f"Question {i}:", "chosen": f" yes {i}", "rejected": " no", **extra} for i in range(count)]


class Place:
    """A model, a file of pairs, and a work folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = tiny_model(root / "tiny")
        self.train = write_jsonl(root / "train.jsonl", rows(20))
        self.work = WorkDir(root / "work")
        self.progress: list[tuple[str, float]] = []

    def job(self, model: dict | None = None, training: dict | None = None, method: str | None = None, **data) -> DPOJob:
        spec = {
            "model": {"name": str(self.model)} | (model or {}),
            "data": {"train": {"source": str(self.train)}} | data,
            "training": training or {},
            "method": {"name": method or "dpo"},
        }
        return DPOJob.model_validate({"metadata": {"name": "j"}, "spec": spec})

    def run(self, **kwargs):
        self.progress.clear()
        job = self.job(**kwargs)
        return prepare.run(job, self.work, Inputs(self.root, progress=lambda *at: self.progress.append(at)))

    def refused(self, code: ExitCode, **kwargs) -> str:
        with pytest.raises(TrainerError) as failure:
            self.run(**kwargs)
        assert failure.value.exit_code == code, failure.value
        assert not self.work.prepared.exists()
        return str(failure.value)

    @property
    def made(self) -> dict:
        return json.loads(self.work.prepared.read_text())

    @property
    def dropped(self) -> list[dict]:
        return [json.loads(line) for line in self.work.dropped_rows.read_text().splitlines()]
