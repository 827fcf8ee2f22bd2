"""Losses against hand-derived values and against properties that hold for any log-probs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_trainer.losses import PAIR_METRICS, dpo_loss, log_ratios, pair_metrics, rewards

pytestmark = pytest.mark.unit

margins = st.floats(min_value=-200, max_value=200)
betas = st.floats(min_value=0.001, max_value=10)


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.4])
def test_equal_ratios_cost_ln2(label_smoothing: float):
    # -log(sigmoid(0)) = log 2, whatever beta is, and so is any mean of the two labels' losses.
    loss = dpo_loss(torch.zeros(3), beta=0.1, label_smoothing=label_smoothing)
    torch.testing.assert_close(loss, torch.full((3,), math.log(2)))


def test_value_by_hand():
    # beta 0.5, margin 2 nats: -log(1 / (1 + e^-1)) = log(1 + e^-1)
    assert dpo_loss(one(2.0), beta=0.5).item() == pytest.approx(math.log1p(math.exp(-1)), abs=1e-12)


def test_smoothing_by_hand():
    # 0.9 log(1 + e^-1) + 0.1 log(1 + e^1)
    expected = 0.9 * math.log1p(math.exp(-1)) + 0.1 * math.log1p(math.exp(1))
    assert dpo_loss(one(2.0), beta=0.5, label_smoothing=0.1).item() == pytest.approx(expected, abs=1e-12)


def test_extreme_margins_stay_finite():
    # A naive log(sigmoid(x)) is -inf here; the loss is linear in the margin instead.
    loss = dpo_loss(torch.tensor([-5000.0, 5000.0]), beta=1.0)
    torch.testing.assert_close(loss, torch.tensor([5000.0, 0.0]))


@given(margins, betas)
def test_losses_of_a_label_and_its_opposite_differ_by_the_logit(margin: float, beta: float):
    # -log σ(x) + log σ(-x) = -x
    difference = dpo_loss(one(margin), beta=beta) - dpo_loss(one(-margin), beta=beta)
    assert difference.item() == pytest.approx(-beta * margin, abs=1e-9, rel=1e-9)


@given(margins, betas, st.floats(min_value=0, max_value=0.49))
def test_smoothing_mixes_both_labels(margin: float, beta: float, smoothing: float):
    mixed = dpo_loss(one(margin), beta=beta, label_smoothing=smoothing)
    parts = (1 - smoothing) * dpo_loss(one(margin), beta=beta) + smoothing * dpo_loss(one(-margin), beta=beta)
    assert mixed.item() == pytest.approx(parts.item(), abs=1e-9, rel=1e-9)


def test_gradient_is_minus_beta_times_the_doubt():
    # d/dm -log σ(βm) = -β σ(-βm), eq. 7's gradient in the paper
    margin = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    dpo_loss(margin, beta=0.3).sum().backward()
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(-0.3 / (1 + math.exp(0.3 * 0.7)), abs=1e-12)


def test_ratios_and_rewards():
    policy, reference = torch.tensor([[-10.0, -20.0]]), torch.tensor([[-12.0, -17.0]])
    assert [part.item() for part in log_ratios(policy, reference)] == [2.0, -3.0]
    assert [part.item() for part in rewards(policy, reference, beta=0.5)] == [1.0, -1.5]


def test_metrics_of_a_win_a_loss_and_a_tie():
    policy = torch.tensor([[-10.0, -20.0], [-10.0, -20.0], [-10.0, -20.0]])
    reference = torch.tensor([[-12.0, -20.0], [-8.0, -20.0], [-10.0, -20.0]])
    found = pair_metrics(torch.tensor([0.1, 0.2, 0.3]), policy, reference, beta=0.5)
    columns = dict(zip(PAIR_METRICS, found.T.tolist(), strict=True))
    assert columns["rewards/chosen"] == [1.0, -1.0, 0.0]
    assert columns["rewards/rejected"] == [0.0, 0.0, 0.0]
    assert columns["rewards/margins"] == [1.0, -1.0, 0.0]
    assert columns["rewards/accuracies"] == [1.0, 0.0, 0.0]
    assert columns["logps/rejected"] == [-20.0, -20.0, -20.0]
