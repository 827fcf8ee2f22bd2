"""Win rates: ties half, the standard error, when a policy is worse, and what lengths explain."""

import math

import numpy as np
import pytest

from dpo_trainer.rounds.winrates import length_controlled, win_rate

pytestmark = pytest.mark.unit


def test_ties_count_half_and_unjudged_prompts_not_at_all():
    found = win_rate([1.0, 1.0, 0.5, 0.0, None], [(3, 3)] * 5)
    assert found is not None
    assert (found.rate, found.count, found.controlled) == (0.625, 4, None)
    assert win_rate([None, None], [(3, 3)] * 2) is None


def test_the_error_is_that_of_a_share():
    found = win_rate([1.0] * 60 + [0.0] * 140, [(3, 3)] * 200)
    assert found is not None
    assert found.error == pytest.approx(math.sqrt(0.3 * 0.7 / 200))


@pytest.mark.parametrize(
    ("wins", "losses", "worse"), [(100, 100, False), (90, 110, False), (80, 120, True), (0, 3, False), (0, 12, True)]
)
def test_worse_means_two_standard_errors_below_one_half(wins: int, losses: int, worse: bool):
    found = win_rate([1.0] * wins + [0.0] * losses, [(3, 3)] * (wins + losses))
    assert found is not None
    assert found.is_worse is worse


def test_a_judge_that_likes_length_wins_nothing_at_equal_length():
    rng = np.random.default_rng(0)
    longer = rng.normal(20, 30, 4000)
    outcomes = (rng.random(4000) < 1 / (1 + np.exp(-2 * np.tanh(longer / longer.std())))).astype(float)
    found = length_controlled(outcomes, longer)
    assert outcomes.mean() > 0.6
    assert found == pytest.approx(0.5, abs=0.04)


def test_separable_outcomes_give_a_finite_rate():
    found = length_controlled(np.array([1.0, 1.0, 0.0, 0.0]), np.array([5.0, 4.0, -4.0, -5.0]))
    assert found == pytest.approx(0.5, abs=1e-6)
