"""What the report says of the pairs that were kept."""

from pathlib import Path

import numpy as np
import pytest

from dpo_operator.api.trainingparts.selection import Selection
from dpo_trainer.batches import rankings
from dpo_trainer.commands.selected import selected
from dpo_trainer.runtime.workdir import WorkDir

pytestmark = pytest.mark.unit


def test_each_ranking_has_its_sentence_and_histogram(tmp_path: Path) -> None:
    work, ranked = WorkDir(tmp_path).round(2), np.arange(100)
    assert selected(work) == []
    for epoch in range(6):
        made = rankings.rank(
            Selection(by="rewardGap"), np.linspace(-1, 3, 100), np.linspace(-1, 3, 100), ranked, key="k", epoch=epoch, step=3, pairs=100,
            seed=0, sources={"train": 40, "mixture[0]": 60}, tokens=5000, seconds=2.0,
        )  # fmt: skip
        rankings.write(work.selection, *made)
    (work.selection / "epoch-0.tmp").write_text("left by a crash")
    (work.selection / "epoch-7.json").write_text("{")
    rows = selected(work)
    names = [name for name, _ in rows if name.startswith("selection")]
    assert names == ["selection, epoch 1", "selection, epoch 2", "selection, epoch 3", "selection, epoch 6"]
    texts = dict(rows)
    assert "trains on 90 of 100 ranked pairs" in texts["selection, epoch 1"]
    assert "25.0% of the ranked have a gap below 0; 5,000 tokens in 2 s" in texts["selection, epoch 1"]
    assert texts["  kept by source"] == "train 30 of 40, mixture[0] 60 of 60"
    assert texts["  rewardGap of the ranked"].startswith("-0.96 ")
