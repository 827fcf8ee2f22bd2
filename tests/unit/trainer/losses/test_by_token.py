"""Entropy and token accuracy of all sampled tokens, and of each side, against the plain means."""

import math

import pytest
import torch

from dpo_trainer.losses.by_token import token_means, token_sums

pytestmark = pytest.mark.unit

# Two pairs and their prompts; the second pair does not count.
SEGMENT = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 5])
ENTROPY = torch.tensor([1.0, 2.0, 3.0, 0.5, 0.7, 9.0, math.nan, 4.0, 9.0], dtype=torch.float64)
TOP1 = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)


def figures(counts: list[bool], *, by_side: bool = True) -> dict[str, float]:
    found = token_sums(SEGMENT, ENTROPY, TOP1, torch.tensor(counts))
    assert all(value.dtype == torch.float64 and value.shape == () for value in found.values())
    return token_means({name: value.item() for name, value in found.items()}, by_side=by_side)


def test_sides_are_apart_and_prompts_count_in_neither():
    found = figures([True, False])
    assert found == pytest.approx({
        "entropy": (6 + 1.2 + 4) / 6, "mean_token_accuracy": 3 / 6,
        "token_accuracy/chosen": 2 / 3, "token_accuracy/rejected": 0.0,
        "entropy/chosen": 2.0, "entropy/rejected": 0.6,
    })  # fmt: skip


def test_without_sides_the_two_figures_of_before_remain():
    assert set(figures([True, False], by_side=False)) == {"entropy", "mean_token_accuracy"}


def test_no_token_that_counts_is_no_figure():
    assert all(math.isnan(value) for value in figures([False, False]).values())
