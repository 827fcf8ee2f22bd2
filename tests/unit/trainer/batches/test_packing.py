"""Pairs are spread over bins within their budget, evenly over ranks, each pair once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api.training import Budget
from dpo_trainer.batches.batch import Layout, collate
from dpo_trainer.batches.packing import rounds, tokens_of
from dpo_trainer.data.dataset import PairDataset, TokenPair

pytestmark = pytest.mark.unit

LAYOUTS: list[Layout] = ["shared", "plain", "off"]
part = st.integers(min_value=1, max_value=40)
some_lengths = st.lists(st.tuples(part, part, part), min_size=1, max_size=60).map(
    lambda rows: np.array(rows, dtype=np.int64)
)
budgets = st.builds(Budget, st.integers(min_value=1, max_value=400), st.none() | st.integers(min_value=1, max_value=9))
worlds = st.integers(min_value=1, max_value=8)


def taken(lengths: np.ndarray, layout: Layout) -> int:
    """Tokens of a bin, as it is laid out."""
    if layout == "off":
        return int(2 * len(lengths) * (lengths[:, 0] + lengths[:, 1:].max(axis=1)).max())
    return int(tokens_of(lengths, layout).sum())


@given(some_lengths, budgets, worlds, st.sampled_from(LAYOUTS))
def test_each_pair_is_in_one_bin_within_the_budget(
    lengths: np.ndarray, budget: Budget, world_size: int, layout: Layout
):
    indices = np.random.default_rng(len(lengths)).permutation(len(lengths)).astype(np.int64)
    planned = rounds(indices, lengths, layout=layout, budget=budget, world_size=world_size)
    assert all(len(groups) == world_size for groups in planned)
    groups = [group for groups in planned for group in groups]
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    for group in groups:
        assert len(group) <= (budget.pairs or len(lengths))
        assert len(group) <= 1 or taken(lengths[group], layout) <= budget.tokens
    # Only the last round may have nothing for some ranks.
    assert all(len(group) for groups in planned[:-1] for group in groups)


@given(some_lengths, budgets, worlds, st.sampled_from(LAYOUTS))
def test_the_plan_is_a_function_of_lengths_alone(lengths: np.ndarray, budget: Budget, world_size: int, layout: Layout):
    indices = np.arange(len(lengths), dtype=np.int64)
    plans = [rounds(indices, lengths, layout=layout, budget=budget, world_size=world_size) for _ in range(2)]
    assert [[g.tolist() for g in r] for r in plans[0]] == [[g.tolist() for g in r] for r in plans[1]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_are_those_of_the_laid_out_row(layout: Layout):
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, 9, size).astype(np.int32) for size in (7, 5, 3, 0)]
    for chosen, rejected in ((1, 2), (2, 1), (1, 3), (3, 2)):
        data = PairDataset.from_pairs([TokenPair(tokens[0], tokens[chosen], tokens[rejected], 0)])
        row = collate(data, [0], layout=layout).input_ids
        assert tokens_of(data.lengths, layout).tolist() == [row.numel()]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_a_step_of_many_pairs_is_even_in_every_round(world_size: int):
    # 128 pairs with lengths as in chat data, in bins of 4,096 tokens: ranks that wait for each other lose little.
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(5.0, 0.7, (128, 3)), 1, 1000).astype(np.int64)
    planned = rounds(np.arange(128), lengths, layout="shared", budget=Budget(4096), world_size=world_size)
    loads = np.array([[tokens_of(lengths[g], "shared").sum() for g in groups] for groups in planned])
    waited = loads.max(axis=1).sum() * world_size / loads.sum()
    assert waited <= 1.03
    # No more rounds than the tokens need.
    assert len(planned) <= np.ceil(loads.sum() / 4096 / world_size) + 1


def test_a_pair_over_the_budget_goes_alone():
    lengths = np.array([[10, 500, 500], [5, 5, 5], [5, 5, 5]], dtype=np.int64)
    [[first], [second]] = rounds(np.arange(3), lengths, layout="shared", budget=Budget(100), world_size=1)
    assert first.tolist() == [0]
    assert sorted(second.tolist()) == [1, 2]
