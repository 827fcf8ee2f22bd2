"""The committed list of kept pairs: what it says, and that nothing else is taken for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_operator.api.trainingparts.selection import Selection
from dpo_trainer.batches import rankings
from dpo_trainer.batches.rankings import Ranking

pytestmark = pytest.mark.unit

RANKED = np.array([0, 2, 3, 5, 7, 8, 9, 11])
FIGURES = np.array([0.5, -0.25, 0.0, 1.0, np.nan, 2.0, -1.0, 0.75])


def made(by: str = "rewardGap", **settings: Any) -> tuple[Ranking, np.ndarray]:
    selection = Selection.model_validate({"by": by, "keep": {"quantiles": [0.25, 1.0]}} | settings)
    return rankings.rank(
        selection, FIGURES, FIGURES, RANKED, key="k", epoch=0, step=4, pairs=12, seed=0, sources={"train": 5, "mixture[0]": 7}, tokens=100
    )  # fmt: skip


def read(folder: Path, **changed: Any) -> Any:
    return rankings.read(folder, **({"epoch": 0, "key": "k", "pairs": 12, "kept": 6} | changed))


def test_the_figures_are_those_of_the_ranking() -> None:
    found, kept = made()
    # The pair without a figure and the lowest gap go.
    assert kept.tolist() == [2, 3, 0, 11, 5, 8]
    assert (found.pairs, found.ranked, found.kept, found.not_finite) == (12, 8, 6, 1)
    assert (found.lowest, found.highest, found.wrong_sign) == (-0.25, 2.0, 0.25)
    assert sum(found.counts) == 7
    assert len(found.edges) == len(found.counts) + 1
    assert found.sources == {"train": (3, 3), "mixture[0]": (3, 5)}
    assert "6 of 8 ranked pairs" in found.sentence
    assert "25.0%" in found.sentence


def test_a_large_loss_is_hard() -> None:
    _, kept = made("heldOutLoss")
    assert kept.tolist() == [5, 11, 0, 3, 2, 9]


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    found, kept = made()
    rankings.write(tmp_path, found, kept)
    again, listed = read(tmp_path)
    assert (again, listed.tolist()) == (found, kept.tolist())
    assert rankings.read_all(tmp_path) == [found]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0.json", "epoch-0.npy"]
    assert all(rankings.FILE.fullmatch(path.name) for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("no json", "there is no epoch-0.json"), ("no list", "there is no epoch-0.npy"), ("torn json", "can't be read"),
        ("torn list", "can't be read"), ("another list", "is not the list"), ("a pair twice", "is not the list"),
        ("beyond the data", "is not the list"), ("a link", "can't be read"), ("pickle", "can't be read"),
    ],
)  # fmt: skip
def test_a_damaged_ranking_is_not_used(tmp_path: Path, harm: str, reason: str) -> None:
    found, kept = made()
    rankings.write(tmp_path, found, kept)
    document, listed = tmp_path / "epoch-0.json", tmp_path / "epoch-0.npy"
    match harm:
        case "no json":
            document.unlink()
        case "no list":
            listed.unlink()
        case "torn json":
            document.write_bytes(document.read_bytes()[:40])
        case "torn list":
            listed.write_bytes(listed.read_bytes()[:100])
        case "a link":
            listed.rename(tmp_path / "elsewhere.npy")
            listed.symlink_to(tmp_path / "elsewhere.npy")
        case "pickle":
            np.save(listed, np.array([{}], dtype=object), allow_pickle=True)
        case "another list":
            np.save(listed, kept[::-1])
        case "a pair twice" | "beyond the data":
            other = np.array([2, 2, 0, 11, 5, 8] if harm == "a pair twice" else [2, 3, 0, 12, 5, 8])
            np.save(listed, other)
            document.write_text(json.dumps(json.loads(document.read_text()) | {"sha256": rankings.digest(other)}))
    assert reason in read(tmp_path)


def test_a_ranking_of_other_settings_or_data_is_not_used(tmp_path: Path) -> None:
    rankings.write(tmp_path, *made())
    assert "other settings" in read(tmp_path, key="other")
    assert "is not the list" in read(tmp_path, kept=5)
    selection, facts = Selection(by="rewardGap"), {"dataset": "d", "seed": 0, "shuffle": True, "batch": 4, "epoch": 0}
    keys = {rankings.key_of(selection, **facts)}  # type: ignore[arg-type]
    for change in ({"dataset": "e"}, {"seed": 1}, {"shuffle": False}, {"batch": 8}, {"epoch": 1}):
        keys.add(rankings.key_of(selection, **(facts | change)))  # type: ignore[arg-type]
    keys.add(rankings.key_of(Selection(by="heldOutLoss"), **facts))  # type: ignore[arg-type]
    assert len(keys) == 7
