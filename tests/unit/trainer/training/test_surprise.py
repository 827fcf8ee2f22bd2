"""Surprise of the first tokens and of the rest, against plain sums; which pairs are looked at."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dpo_trainer.batches.batch import collate
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.engine.engine import Predictions
from dpo_trainer.training.surprise import Surprise, some_of

pytestmark = pytest.mark.unit


def tokens(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.int32)


# Short ones, which have no rest; and one without a rejected answer.
DATA = PairDataset.from_pairs(
    TokenPair(tokens(3), tokens(chosen), tokens(rejected), row)
    for row, (chosen, rejected) in enumerate([(6, 2), (4, 9), (1, 5), (7, 0)])
)


def looked_at(batches: list[list[int]], *, prompts: bool = False) -> tuple[dict[str, float], dict[Any, Any]]:
    """The figures, and each answer's log-probs, entropies and hits by (pair, side)."""
    rng, surprise, known = np.random.default_rng(5), Surprise(), {}
    for indices in batches:
        batch = collate(DATA, indices, score_prompts=prompts)
        drawn = torch.from_numpy(rng.uniform(0.1, 2.0, (3, len(batch.scored_segment))))
        drawn[2] = (drawn[2] > 1).double()
        predictions = Predictions(-drawn[0], drawn[1], drawn[2], batch.scored_segment)
        surprise.add(batch, SimpleNamespace(tokens=predictions))  # type: ignore[arg-type]
        for place, index in enumerate(indices):
            for side in range(2):
                known[index, side] = drawn[:, batch.scored_segment == 2 * place + side].numpy()
    return surprise.figures(Ranks()), known


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("batches", [[[0, 1, 2, 3]], [[2], [3, 0], [1]]])
def test_figures_are_medians_of_ratios_and_means_over_tokens(batches: list[list[int]], prompts: bool):
    found, known = looked_at(batches, prompts=prompts)
    assert found["surprise/pairs"] == 4
    for side, name in enumerate(("chosen", "rejected")):
        answers = [known[pair, side] for pair in range(4) if known[pair, side].shape[1]]
        first = [a[0, :4].sum() / a[1, :4].sum() for a in answers]
        rest = [a[0, 4:].sum() / a[1, 4:].sum() for a in answers if a.shape[1] > 4]
        assert found[f"surprise/first4_{name}"] == pytest.approx(np.median(first))
        assert found[f"surprise/rest_{name}"] == pytest.approx(np.median(rest))
        whole = np.concatenate(answers, axis=1)
        assert found[f"token_accuracy/{name}"] == pytest.approx(whole[2].mean())
        assert found[f"nll_per_token/{name}"] == pytest.approx(whole[0].mean())


def test_dummies_are_left_out_and_a_missing_side_is_no_number():
    surprise = Surprise()
    batch = collate(DATA, [0], weight=0.0)
    ones = torch.ones(len(batch.scored_segment), dtype=torch.float64)
    surprise.add(batch, SimpleNamespace(tokens=Predictions(-ones, ones, ones, batch.scored_segment)))  # type: ignore[arg-type]
    assert surprise.figures(Ranks()) == {}
    found = looked_at([[3]])[0]
    assert math.isnan(found["surprise/first4_rejected"])
    assert math.isfinite(found["surprise/first4_chosen"])


def test_rounds_are_spread_over_all_sizes():
    few, many = ([[np.zeros(8, dtype=np.int64)] * 2 for _ in range(rounds)] for rounds in (10, 1000))
    assert Surprise().rounds(few) == set(range(10))
    chosen = sorted(Surprise().rounds(many))
    assert 512 <= 16 * len(chosen) < 1024
    assert chosen[-1] > 900


@pytest.mark.parametrize(
    ("pairs", "seen", "count"), [(90, 90, 90), (640, 640, 128), (640, 7200, 216), (10**6, 10**7, 256)]
)
def test_passes_of_their_own_are_a_small_part_of_the_run(pairs: int, seen: int, count: int):
    chosen = some_of(pairs, seen)
    assert len(chosen) == count
    assert (chosen[0], chosen[-1]) == (0, pairs - 1)
