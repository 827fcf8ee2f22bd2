"""Which of the pairs are kept, and in which order steps use them."""

import numpy as np
import pytest

from dpo_operator.api.trainingparts.selection import Keep, Selection
from dpo_trainer.batches.sampler import StepPlan, epoch_order
from dpo_trainer.batches.selected import SelectedPlan, choose

pytestmark = pytest.mark.unit


def plan(pairs: int = 50, batch: int = 8, *, shuffle: bool = True, **settings: object) -> SelectedPlan:
    """A plan whose lists keep the pairs with the largest numbers, easiest last."""
    selection = Selection.model_validate(
        {"by": "rewardGap", "warmup": 0.3, "keep": {"quantiles": [0.5, 1.0]}} | settings
    )
    made = SelectedPlan(pairs, batch, selection, seed=3, shuffle=shuffle)
    for epoch in range(4):
        ranked = made.ranked(epoch)
        made.lists[epoch] = choose(ranked.astype(np.float64), ranked, selection.kept(len(ranked)), seed=3)
        assert len(made.lists[epoch]) == made.kept(epoch)
    return made


def epochs_of(made: SelectedPlan, count: int) -> list[list[int]]:
    """Pairs of the first epochs in their order."""
    found: list[list[int]] = [[] for _ in range(count + 1)]
    for step in range(1, made.total_steps(epochs=count, max_steps=None) + 1):
        found[int(made.epoch(step - 1) + 1e-9)] += made.step(step).tolist()
    assert not found.pop()
    return found


@pytest.mark.parametrize("pairs", [49, 50, 64])
@pytest.mark.parametrize("refresh", ["once", "epoch"])
def test_every_epoch_has_each_of_its_pairs_once(pairs: int, refresh: str) -> None:
    made = plan(pairs, refresh=refresh)
    warmup = set(epoch_order(pairs, seed=3, epoch=0, shuffle=True)[: made.warmup].tolist())
    assert made.warmup % 8 == 0
    assert len(warmup) == made.warmup > 0
    first, second, third = epochs_of(made, 3)
    assert first[: made.warmup] == epoch_order(pairs, seed=3, epoch=0, shuffle=True)[: made.warmup].tolist()
    assert sorted(first) == sorted(warmup | set(made.lists[0].tolist()))
    assert not warmup & set(made.lists[0].tolist())
    if refresh == "once":
        assert sorted(second) == sorted(third) == sorted(first)
    else:
        assert [sorted(second), sorted(third)] == [sorted(made.lists[1]), sorted(made.lists[2])]
        assert len(second) == pairs - round(pairs / 2 + 1e-9)
    assert second != third


@pytest.mark.parametrize("refresh", ["once", "epoch"])
def test_pairs_seen_and_epochs_are_those_of_the_steps(refresh: str) -> None:
    made, seen = plan(refresh=refresh), 0
    for step in range(1, made.total_steps(epochs=3, max_steps=None) + 1):
        seen += len(made.step(step))
        if made.epoch(step) % 1 or step % 2:
            assert made.pairs_seen(step) == seen
    assert made.epoch(made.total_steps(epochs=3, max_steps=None)) == 3
    assert made.pairs_seen(made.total_steps(epochs=3, max_steps=None)) == seen
    assert made.total_steps(epochs=1, max_steps=7) == 7


def test_only_steps_after_the_warm_up_need_a_list() -> None:
    once, fresh = plan(), plan(refresh="epoch")
    warm = once.warmup // 8
    assert [once.needs(step) for step in (1, warm, warm + 1)] == [None, None, 0]
    first = once.total_steps(epochs=1, max_steps=None)
    assert (once.needs(first + 1), fresh.needs(first), fresh.needs(first + 1)) == (0, 0, 1)
    assert SelectedPlan(50, 8, Selection(by="scoreGap"), seed=0, shuffle=True).needs(1) == 0


def test_kept_pairs_come_in_the_order_that_is_asked_for() -> None:
    for order, expected in (("hardFirst", lambda kept: kept), ("easyFirst", lambda kept: kept[::-1])):
        made = plan(order=order)
        for epoch in epochs_of(made, 2):
            assert epoch[made.warmup :] == expected(made.lists[0].tolist())
            assert sorted(epoch[: made.warmup]) == sorted(epoch_order(50, seed=3, epoch=0, shuffle=True)[: made.warmup])
    in_files_order = epochs_of(plan(shuffle=False), 2)
    assert all(pairs == sorted(pairs) for pairs in in_files_order)


def test_all_pairs_kept_are_those_of_a_run_without_selection() -> None:
    whole = plan(keep={"quantiles": [0.0, 1.0]})
    plain = StepPlan(50, 8, seed=3, shuffle=True)
    total = plain.total_steps(epochs=2.5, max_steps=None)
    assert whole.total_steps(epochs=2.5, max_steps=None) == total
    for step in range(1, total + 1):
        assert whole.step(step).tolist() == plain.step(step).tolist()
        assert whole.epoch(step) == plain.epoch(step)


def test_the_hardest_come_first_and_numbers_that_are_none_are_hardest() -> None:
    ease = np.array([0.3, np.nan, -1.0, 5.0, np.inf])
    ranked = np.array([2, 4, 6, 8, 9])
    assert set(choose(ease, ranked, range(2), seed=0).tolist()) == {4, 9}
    assert choose(ease, ranked, range(2, 5), seed=0).tolist() == [6, 2, 8]


def test_ties_are_drawn_by_the_seed_and_not_by_their_place() -> None:
    ranked = np.arange(1000)
    kept = [choose(np.zeros(1000), ranked, range(500), seed=seed) for seed in (0, 0, 1)]
    assert kept[0].tolist() == kept[1].tolist() != kept[2].tolist()
    assert 400 < kept[0].mean() < 600
    # The same pairs in another ranking are drawn alike, whatever else is ranked.
    some = choose(np.zeros(10), np.arange(10), range(10), seed=0)
    more = choose(np.zeros(20), np.arange(20), range(20), seed=0)
    assert [pair for pair in more.tolist() if pair < 10] == some.tolist()


@pytest.mark.parametrize(
    ("low", "high", "ranked", "kept"), [(0.1, 1.0, 10, 9), (0.1, 1.0, 14, 13), (0.25, 0.75, 10, 5), (0, 0.01, 10, 0)]
)
def test_how_many_are_kept_is_exact(low: float, high: float, ranked: int, kept: int) -> None:
    settings = Selection(by="rewardGap", keep=Keep(quantiles=(low, high)))
    assert len(settings.kept(ranked)) == kept
