"""A judge that does not know better than a coin what the labels say is named before it is trusted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_operator.api.iterative import Judge as Settings
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.judging import open_judge
from dpo_trainer.rounds.labels import disagreement
from tests.unit.trainer.place import Place

pytestmark = pytest.mark.unit

WORDS = ["say", "kind", "rude", "plain"]


def ids(text: str) -> np.ndarray:
    return np.array([WORDS.index(word) for word in text.split()], dtype=np.int32)


def decode(tokens: np.ndarray) -> str:
    return " ".join(WORDS[token] for token in tokens)


def found(root: Path, pairs: list[tuple[str, str]], plain: bool = True, **builtin: Any) -> str:
    place = Place(root)
    place.run()
    prompts = {"digest": "", "prompts": 9, "per_round": 9, "compared": 0, "left_out": {}, "plain_evaluation": plain}
    place.work.prepared.write_text(json.dumps(place.made | {"prompts": prompts}))
    work = place.work
    if pairs:
        PairDataset.from_pairs(TokenPair(ids("say"), ids(a), ids(b), 0) for a, b in pairs).save(work.eval_data)
    judge = open_judge(
        Settings.model_validate({"type": "builtin", "builtin": {"name": "distinctWords", **builtin}}), work
    )
    return disagreement(judge, work, decode, lambda: None)


def test_a_judge_that_turns_labels_round_is_named(tmp_path: Path) -> None:
    text = found(tmp_path, [("kind", "rude")] * 3 + [("plain", "kind")], words=["rude"])
    assert text.startswith("the reward model ranks 0 of 4 evaluation pairs as their labels say, no more than a coin")


def test_half_of_the_pairs_is_no_more_than_a_coin_and_ties_are_not_right(tmp_path: Path) -> None:
    assert "ranks 1 of 2 evaluation" in found(tmp_path, [("kind", "rude"), ("plain", "plain rude")], words=["kind"])


def test_a_judge_that_agrees_is_trusted(tmp_path: Path) -> None:
    assert found(tmp_path, [("kind", "rude")] * 2 + [("plain", "kind")], words=["kind"]) == ""


def test_without_pairs_and_of_chats_nothing_is_said(tmp_path: Path) -> None:
    assert found(tmp_path / "none", [], words=["rude"]) == ""
    assert found(tmp_path / "chat", [("kind", "rude")], plain=False, words=["rude"]) == ""
