"""The export of a job with rounds: the chosen round's, by links where the volume has them."""

import errno
import json
import os
from pathlib import Path

import pytest

from dpo_operator.api.types import DPOJob
from dpo_trainer.export import chosen
from dpo_trainer.rounds import record
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.files import sha256
from dpo_trainer.runtime.workdir import WorkDir

pytestmark = pytest.mark.unit

JOB = DPOJob.model_validate(
    {"metadata": {"name": "j"}, "spec": {"model": {"name": "m"}, "data": {"train": {"source": "d"}}}}
)


@pytest.fixture
def work(tmp_path: Path) -> WorkDir:
    """Two rounds with an export each."""
    work = WorkDir(tmp_path)
    for number in (1, 2):
        folder = work.round(number).export
        (folder / "start").mkdir(parents=True)
        for name in ("model.safetensors", "start/adapter.safetensors"):
            (folder / name).write_text(f"{name} of round {number}")
        files = {name: sha256(folder / name) for name in ("model.safetensors", "start/adapter.safetensors")}
        (folder / "dpo_provenance.json").write_text(json.dumps({"files": files}))
    return work


def export(work: WorkDir) -> tuple[str, int]:
    return chosen.run(JOB, work, progress=lambda _: None)


def test_the_last_round_by_links(work: WorkDir):
    assert export(work) == ("export", 2)
    for name in ("model.safetensors", "start/adapter.safetensors", "dpo_provenance.json"):
        assert (work.export / name).samefile(work.round(2).export / name)


def test_the_chosen_round_and_again_nothing(work: WorkDir):
    record.choose(work, 1, "RoundsWorse: round 2 is worse")
    assert export(work) == ("export", 1)
    before = work.export.stat().st_ino
    assert export(work) == ("export", 1)
    assert work.export.stat().st_ino == before
    # Another choice replaces it.
    work.chosen.unlink()
    assert export(work) == ("export", 2)
    assert (work.export / "model.safetensors").read_text() == "model.safetensors of round 2"


def test_copies_where_there_are_no_links(work: WorkDir, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    assert export(work) == ("export", 2)
    made = work.export / "model.safetensors"
    assert not made.samefile(work.round(2).export / "model.safetensors")
    assert made.read_text() == "model.safetensors of round 2"


def test_without_an_exported_round_there_is_nothing(tmp_path: Path, work: WorkDir):
    with pytest.raises(TrainerError, match="expected the export of a round"):
        export(WorkDir(tmp_path / "new"))
    (work.round(2).export / "dpo_provenance.json").unlink()
    with pytest.raises(TrainerError, match="expected the export of round 2"):
        export(work)
