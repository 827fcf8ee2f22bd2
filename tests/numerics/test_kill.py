"""Killed at any sub-step of a save, on any rank: the last committed checkpoint stays, and the run goes on from it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.full import open_newest
from dpo_trainer.checkpoint.store import Checkpoints
from tests.numerics.interruptions import STEPS, assert_same_curve, curve, folder, job, train_until
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = pytest.mark.numerics

SHARD = ["shard-opened", "shard-half", "shard-written", "shard-synced", "digests-gathered"]
BEFORE = [(0, p) for p in ("space-checked", "folder-made", *SHARD, "manifest-synced", "fence-checked")]
BEFORE += [(1, p) for p in SHARD[:-1]]
# Rank 1's shard is whole and its digest known, so rank 0 may commit although rank 1 is gone.
EITHER = [(1, "digests-gathered")]
AFTER = [(0, p) for p in ("renamed", "committed", "old-removed")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    folder(root)
    on_ranks(2, _uninterrupted, _document(), root)
    return root


@pytest.fixture(scope="module")
def at_step_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder whose only checkpoint is that of step 2; copies of it are cheap."""
    root = tmp_path_factory.mktemp("at-step-2")
    folder(root)
    with pytest.raises(RankFailed):
        on_ranks(2, _to_step_3, _document(), root)
    assert [step for step, _ in layout.committed(root / "checkpoints")] == [2]
    return root


@pytest.mark.parametrize(("rank", "point"), BEFORE + EITHER + AFTER)
def test_what_a_kill_leaves_behind(tmp_path: Path, at_step_2: Path, rank: int, point: str):
    root = tmp_path / "run"
    shutil.copytree(at_step_2, root)

    with pytest.raises(RankFailed):
        on_ranks(2, _killed_in_save, _document(), root, rank, point)

    newest, refused = open_newest(root / "checkpoints")
    assert refused == []
    assert newest.manifest.step in ((2, 4) if (rank, point) in EITHER else (4,) if (rank, point) in AFTER else (2,))
    # The next attempt clears what is half-written and keeps what is whole.
    kept = layout.committed(root / "checkpoints")
    Checkpoints(root / "checkpoints", 3, {}).begin()
    assert layout.temporary_folders(root / "checkpoints") == []
    assert layout.committed(root / "checkpoints") == kept


@pytest.mark.parametrize(("rank", "point"), [(0, "fence-checked"), (1, "shard-half"), (0, "renamed")])
def test_the_run_ends_as_if_there_had_been_no_kill(tmp_path: Path, at_step_2: Path, whole: Path, rank: int, point: str):
    root = tmp_path / "run"
    shutil.copytree(at_step_2, root)
    with pytest.raises(RankFailed):
        on_ranks(2, _killed_in_save, _document(), root, rank, point)

    first, _ = on_ranks(2, _last_attempt, _document(), root)

    assert (first["status"], first["resumed_from"]) == ("Succeeded", 4 if point == "renamed" else 2)
    assert [line["step"] for line in curve(root)] == list(range(1, STEPS + 1))
    assert_same_curve(curve(root), curve(whole))


def _document() -> dict[str, Any]:
    return job(every_steps=2)


def _uninterrupted(document: dict[str, Any], root: Path) -> dict[str, Any]:
    return train_until(document, root, 1)


def _to_step_3(document: dict[str, Any], root: Path) -> dict[str, Any]:
    return train_until(document, root, 1, kill_after=(0, 3))


def _killed_in_save(document: dict[str, Any], root: Path, rank: int, point: str) -> dict[str, Any]:
    return train_until(document, root, 2, kill_in_save=(rank, 4, point))


def _last_attempt(document: dict[str, Any], root: Path) -> dict[str, Any]:
    return train_until(document, root, 3)
