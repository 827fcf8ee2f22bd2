"""Accuracy by length, and what length alone would score."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_trainer.losses.by_length import NAMES, bucket_means, bucket_sums
from dpo_trainer.losses.objective import Logps

pytestmark = pytest.mark.unit

# Tokens of both answers, whether the chosen one has the larger reward, whether the pair counts.
Pair = tuple[int, int, bool, bool]


def sums_of(pairs: list[Pair]) -> dict[str, float]:
    policy = torch.zeros(len(pairs), 2, dtype=torch.float64)
    logps = Logps(policy, policy, torch.tensor([[a, b] for a, b, _, _ in pairs]))
    rewards = torch.tensor([[float(right), 0.0] for _, _, right, _ in pairs])
    found = bucket_sums(logps, rewards, torch.tensor([counts for *_, counts in pairs]))
    assert all(value.dtype == torch.float64 and value.shape == () for value in found.values())
    return {name: value.item() for name, value in found.items()}


def means_of(*pairs: Pair) -> dict[str, float]:
    return bucket_means(sums_of(list(pairs)))


def test_a_pair_is_as_long_as_its_longer_answer():
    found = sums_of([(64, 3, True, True), (3, 65, True, True), (256, 256, False, True), (1, 1025, True, True)])
    assert NAMES == ("le_64", "le_256", "le_1024", "gt_1024")
    assert [found[f"pairs/{name}"] for name in NAMES] == [1, 2, 0, 1]
    assert [found[f"right/{name}"] for name in NAMES] == [1, 1, 0, 1]


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        (1, "le_64"),
        (64, "le_64"),
        (65, "le_256"),
        (256, "le_256"),
        (257, "le_1024"),
        (1024, "le_1024"),
        (1025, "gt_1024"),
    ],
)
def test_bounds_belong_to_the_shorter_bucket(tokens: int, name: str):
    assert means_of((tokens, 1, True, True)).keys() == {f"rewards/accuracies/{name}", "length_baseline_accuracy"}


def test_only_buckets_with_pairs_have_an_accuracy():
    found = means_of((10, 20, True, True), (30, 20, False, True), (30, 20, True, True), (900, 20, True, True))
    assert found["rewards/accuracies/le_64"] == pytest.approx(2 / 3)
    assert found["rewards/accuracies/le_1024"] == 1
    assert len(found) == 3


def test_the_baseline_is_the_better_of_always_longer_and_always_shorter():
    longer, shorter = (20, 10, True, True), (10, 20, True, True)
    assert means_of(longer, longer, longer, shorter)["length_baseline_accuracy"] == 0.75
    assert means_of(longer, shorter, shorter, shorter)["length_baseline_accuracy"] == 0.75
    # Equal lengths say nothing: half of them are guessed.
    assert means_of(longer, longer, (9, 9, True, True), (9, 9, False, True))["length_baseline_accuracy"] == 0.75
    assert means_of((9, 9, True, True))["length_baseline_accuracy"] == 0.5


def test_a_tie_in_reward_is_not_right():
    assert means_of((10, 20, False, True))["rewards/accuracies/le_64"] == 0


def test_examples_that_do_not_count_or_have_one_answer_are_left_out():
    real = [(10, 20, True, True), (300, 20, False, True)]
    assert sums_of([*real, (10, 20, True, False), (10, 0, True, True), (0, 30, True, True)]) == sums_of(real)
    assert math.isnan(means_of((10, 0, True, True))["length_baseline_accuracy"])


lengths = st.integers(1, 1500)


@given(st.lists(st.tuples(lengths, lengths, st.booleans(), st.booleans()), min_size=2, max_size=12), st.data())
def test_the_sums_of_any_split_add_up(pairs: list[Pair], data: st.DataObject):
    whole, cut = sums_of(pairs), data.draw(st.integers(1, len(pairs) - 1))
    first, second = sums_of(pairs[:cut]), sums_of(pairs[cut:])
    assert list(first) == list(whole)
    assert {name: first[name] + second[name] for name in whole} == whole
    assert sum(whole[f"pairs/{name}"] for name in NAMES) == sum(counts for *_, counts in pairs)
    assert 0.5 <= bucket_means(whole)["length_baseline_accuracy"] <= 1 or not any(counts for *_, counts in pairs)
