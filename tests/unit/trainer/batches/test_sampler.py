"""Every epoch uses every pair once, whatever the batch size and the number of ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_trainer.batches.sampler import StepPlan, epoch_order
from dpo_trainer.training.sampling.prompts import shares

pytestmark = pytest.mark.unit

counts = st.integers(min_value=1, max_value=60)
small = st.integers(min_value=1, max_value=9)


@given(counts, small, st.booleans(), st.integers(min_value=0, max_value=2**31 - 1))
def test_an_epoch_has_each_pair_once(pairs: int, batch: int, shuffle: bool, seed: int):
    plan = StepPlan(pairs, batch, seed=seed, shuffle=shuffle)
    for epoch in range(2):
        first = epoch * plan.steps_per_epoch + 1
        seen = np.concatenate([plan.step(first + i) for i in range(plan.steps_per_epoch)])
        assert sorted(seen.tolist()) == list(range(pairs))
    assert all(len(plan.step(i + 1)) == batch for i in range(plan.steps_per_epoch - 1))


@given(counts, small, small)
def test_ranks_share_prompts_and_take_equally_many_turns(pairs: int, world_size: int, size: int):
    indices = np.arange(100, 100 + pairs)
    found = [shares(indices, rank=r, world_size=world_size, size=size) for r in range(world_size)]
    assert len({len(share) for share in found}) == 1
    assert all(len(group) <= size for share in found for group in share)
    everything = np.concatenate([group for share in found for group in share])
    assert sorted(everything.tolist()) == indices.tolist()


def test_the_order_is_the_seeds_and_the_epochs():
    assert (
        epoch_order(50, seed=1, epoch=0, shuffle=True).tolist()
        == epoch_order(50, seed=1, epoch=0, shuffle=True).tolist()
    )
    orders = {tuple(epoch_order(50, seed=s, epoch=e, shuffle=True)) for s in (0, 1) for e in (0, 1)}
    assert len(orders) == 4
    assert epoch_order(4, seed=1, epoch=3, shuffle=False).tolist() == [0, 1, 2, 3]


def test_the_order_never_changes_between_versions():
    # Written down once: a job that is resumed under a newer image has to go on with the same pairs.
    assert epoch_order(8, seed=0, epoch=0, shuffle=True).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert epoch_order(8, seed=7, epoch=2, shuffle=True).tolist() == [6, 7, 4, 0, 1, 5, 3, 2]


def test_the_last_step_of_an_epoch_has_what_is_left():
    plan = StepPlan(10, 4, seed=0, shuffle=True)
    assert [len(plan.step(i)) for i in range(1, 7)] == [4, 4, 2, 4, 4, 2]
    assert [plan.epoch(i) for i in (1, 3, 4, 6)] == [0.4, 1.0, 1.4, 2.0]
    assert [plan.pairs_seen(i) for i in (2, 3, 4)] == [8, 10, 14]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(1.0, None, 3), (0.5, None, 2), (0.01, None, 1), (2.0, None, 6), (1.0, 2, 2), (1.0, 50, 50)],
)
def test_total_steps(epochs: float, max_steps: int | None, expected: int):
    assert StepPlan(10, 4, seed=0, shuffle=True).total_steps(epochs=epochs, max_steps=max_steps) == expected
