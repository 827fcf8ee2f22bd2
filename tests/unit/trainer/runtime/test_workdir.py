"""Paths of a work folder: a job without legs has those it always had, and a round has the same within its own folder."""

from pathlib import Path

import pytest

from dpo_trainer.runtime.workdir import WorkDir

pytestmark = pytest.mark.unit

ROOT = Path("/work")
OWN = {
    "train_data": "data/train", "checkpoints": "checkpoints", "metrics": "metrics.jsonl", "diagnosis": "diagnosis.json",
    "samples": "samples.jsonl", "tensorboard": "tensorboard", "export": "export",
}  # fmt: skip
COMMON = {
    "prepared": "prepared.json", "model": "model", "eval_data": "data/eval", "dropped_rows": "data/dropped.jsonl",
    "data_report": "data/report.json", "reference": "reference", "reference_model": "reference-model",
    "pushed": "pushed.json", "report": "report", "prompts": "data/prompts", "chosen": "rounds/chosen.json",
}  # fmt: skip


def test_a_job_without_rounds_keeps_its_paths():
    work = WorkDir(ROOT)
    for name, path in {**OWN, **COMMON}.items():
        assert getattr(work, name) == ROOT / path, name
    assert (work.number, work.own) == (0, ROOT)


def test_a_round_has_its_own_training_and_the_jobs_inputs():
    work = WorkDir(ROOT).round(2)
    for name, path in OWN.items():
        assert getattr(work, name) == ROOT / "rounds/0002" / path, name
    for name, path in COMMON.items():
        assert getattr(work, name) == ROOT / path, name
    assert (work.number, work.round(1).number, work.round(0)) == (2, 1, WorkDir(ROOT))


def test_rounds_are_those_with_a_folder(tmp_path: Path):
    assert WorkDir(tmp_path).rounds == []
    for name in ("0002", "0001", "chosen.json", "00x1"):
        (tmp_path / "rounds" / name).mkdir(parents=True)
    assert WorkDir(tmp_path).round(1).rounds == [1, 2]
