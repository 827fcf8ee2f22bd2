"""Every loss against a number worked out by hand, its gradient in closed form, its limits, and properties for any input."""

import math
from collections.abc import Callable
from decimal import Decimal, getcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dpo_trainer.losses import formulas

pytestmark = pytest.mark.unit

margins = st.floats(min_value=-200, max_value=200)
betas = st.floats(min_value=0.001, max_value=10)
smoothings = st.floats(min_value=0, max_value=0.49)
log_probs = st.floats(min_value=-30, max_value=-1e-6)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def softplus(x: float) -> float:
    """log(1 + e^x) = -log σ(-x), in plain math."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def slope(loss: Callable[[Tensor], Tensor], at: float) -> float:
    """Derivative of a loss of one margin."""
    margin = one(at).requires_grad_()
    [found] = torch.autograd.grad(loss(margin).sum(), margin)
    return found.item()


# DPO, and its smoothed form.


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_equal_ratios_cost_ln2(beta: float, label_smoothing: float):
    # -log σ(0) = log 2, whatever beta is, and so is any mean of the two labels' losses.
    loss = formulas.dpo_loss(torch.zeros(3), beta=beta, label_smoothing=label_smoothing)
    torch.testing.assert_close(loss, torch.full((3,), math.log(2)))


def test_dpo_by_hand():
    # beta 0.5, margin 2 nats: -log(1 / (1 + e^-1)) = log(1 + 0.36787944) = log 1.36787944 = 0.31326169
    assert formulas.dpo_loss(one(2.0), beta=0.5).item() == pytest.approx(0.31326169, abs=1e-8)


def test_conservative_dpo_by_hand():
    # 0.9 log(1 + e^-1) + 0.1 log(1 + e) = 0.9 * 0.31326169 + 0.1 * 1.31326169 = 0.41326169
    assert formulas.dpo_loss(one(2.0), beta=0.5, label_smoothing=0.1).item() == pytest.approx(0.41326169, abs=1e-8)


def test_extreme_margins_stay_finite():
    # A naive log(sigmoid(x)) is -inf here; the loss is linear in the margin instead.
    loss = formulas.dpo_loss(torch.tensor([-5000.0, 5000.0]), beta=1.0)
    torch.testing.assert_close(loss, torch.tensor([5000.0, 0.0]))
    # 0.9 * 0 + 0.1 * 5000, and the same mirrored.
    smoothed = formulas.dpo_loss(torch.tensor([5000.0, -5000.0]), beta=1.0, label_smoothing=0.1)
    torch.testing.assert_close(smoothed, torch.tensor([500.0, 4500.0]))


@given(margins, betas)
def test_losses_of_a_label_and_its_opposite_differ_by_the_logit(margin: float, beta: float):
    # -log σ(x) + log σ(-x) = -x
    difference = formulas.dpo_loss(one(margin), beta=beta) - formulas.dpo_loss(one(-margin), beta=beta)
    assert difference.item() == pytest.approx(-beta * margin, abs=1e-9, rel=1e-9)


@given(margins, betas, smoothings)
def test_smoothing_mixes_both_labels(margin: float, beta: float, smoothing: float):
    mixed = formulas.dpo_loss(one(margin), beta=beta, label_smoothing=smoothing)
    parts = (1 - smoothing) * softplus(-beta * margin) + smoothing * softplus(beta * margin)
    assert mixed.item() == pytest.approx(parts, abs=1e-9, rel=1e-9)


@given(margins)
def test_at_a_smoothing_of_one_half_the_label_says_nothing(margin: float):
    # Just below the limit, the losses of a label and its opposite are the same: -x (1 - 2ε) apart.
    both = [formulas.dpo_loss(one(m), beta=1.0, label_smoothing=0.5 - 1e-9).item() for m in (margin, -margin)]
    assert both[0] == pytest.approx(both[1], abs=1e-6)


@pytest.mark.parametrize("margin", [-3.0, 0.0, 0.7, 40.0])
def test_dpos_gradient_is_minus_beta_times_the_doubt(margin: float):
    # d/dm -log σ(βm) = -β σ(-βm), the weight of the gradient after eq. 7 of the paper
    found = slope(lambda m: formulas.dpo_loss(m, beta=0.3), margin)
    assert found == pytest.approx(-0.3 * sigmoid(-0.3 * margin), rel=1e-12)


def test_smoothing_stops_pulling_where_the_odds_are_those_of_the_labels():
    # The minimum is where σ(βm) = 1 - ε: m = log((1 - ε)/ε) / β
    loss = lambda m: formulas.dpo_loss(m, beta=0.2, label_smoothing=0.1)  # noqa: E731
    assert slope(loss, math.log(9) / 0.2) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("margin", [-50.0, 3.0])
def test_with_a_small_beta_the_loss_is_a_straight_line_around_ln2(margin: float):
    # -log σ(βm) = ln 2 - βm/2 + O(β²)
    beta = 1e-6
    loss = formulas.dpo_loss(one(margin), beta=beta).item()
    assert (loss - math.log(2)) / beta == pytest.approx(-margin / 2, rel=1e-3)


# Robust DPO.


def test_robust_dpo_by_hand():
    # ε 0.1, βm = 1: (0.9 * 0.31326169 - 0.1 * 1.31326169) / 0.8 = (0.28193552 - 0.13132617) / 0.8 = 0.18826169
    found = formulas.robust_dpo_loss(one(2.0), beta=0.5, label_smoothing=0.1).item()
    assert found == pytest.approx(0.18826169, abs=1e-8)


@given(margins, betas, smoothings)
def test_robust_dpo_is_unbiased_under_flipped_labels(margin: float, beta: float, flips: float):
    # A label that is wrong with probability ε costs, in expectation, what the true label costs under plain DPO.
    kept, flipped = (formulas.robust_dpo_loss(one(m), beta=beta, label_smoothing=flips) for m in (margin, -margin))
    expected = (1 - flips) * kept.item() + flips * flipped.item()
    assert expected == pytest.approx(softplus(-beta * margin), abs=1e-6, rel=1e-9)


def test_robust_dpo_without_noise_is_dpo():
    at = torch.linspace(-30, 30, 13, dtype=torch.float64)
    torch.testing.assert_close(
        formulas.robust_dpo_loss(at, beta=0.4, label_smoothing=0.0), formulas.dpo_loss(at, beta=0.4), rtol=0, atol=1e-15
    )


def test_robust_dpo_stays_finite_and_falls_below_zero():
    # Far right the loss of the flipped label, -ε x / (1 - 2ε), is all there is: -0.1 * 5000 / 0.8
    found = formulas.robust_dpo_loss(torch.tensor([5000.0, -5000.0]), beta=1.0, label_smoothing=0.1)
    torch.testing.assert_close(found, torch.tensor([-625.0, 5625.0]))


@pytest.mark.parametrize("margin", [-3.0, 0.7])
def test_robust_dpos_gradient(margin: float):
    # [-(1 - ε) σ(-x) - ε σ(x)] β / (1 - 2ε)
    found = slope(lambda m: formulas.robust_dpo_loss(m, beta=0.3, label_smoothing=0.2), margin)
    x = 0.3 * margin
    assert found == pytest.approx(-0.3 * (0.8 * sigmoid(-x) + 0.2 * sigmoid(x)) / 0.6, rel=1e-12)


# IPO and hinge.


def test_ipo_by_hand():
    # beta 0.25: the margin is pulled to 1/(2 * 0.25) = 2 nats. (5 - 2)² = 9
    assert formulas.ipo_loss(one(5.0), beta=0.25).item() == 9.0


@given(betas)
def test_ipos_minimum_is_at_one_over_two_beta(beta: float):
    best = 1 / (2 * beta)
    assert formulas.ipo_loss(one(best), beta=beta).item() == 0
    # 2 (m - 1/(2β)) = 0 there, and ±2 one nat aside
    assert [slope(lambda m: formulas.ipo_loss(m, beta=beta), best + d) for d in (-1, 0, 1)] == pytest.approx([-2, 0, 2])


def test_hinge_by_hand():
    # beta 0.5: 1 - 0.5 * 1.2 = 0.4; satisfied from a margin of 2 nats on; 1 + 0.5 * 4 = 3
    found = formulas.hinge_loss(torch.tensor([1.2, 2.0, 900.0, -4.0]), beta=0.5)
    torch.testing.assert_close(found, torch.tensor([0.4, 0.0, 0.0, 3.0]))


def test_hinge_pulls_by_beta_until_it_is_satisfied():
    pulls = [slope(lambda m: formulas.hinge_loss(m, beta=0.5), margin) for margin in (-9.0, 1.9, 2.1)]
    assert pulls == [-0.5, -0.5, 0.0]


# KTO.


def kto(desirable: float, undesirable: float, kl: float, **settings: float) -> list[float]:
    ratios = torch.tensor([[desirable, undesirable]], dtype=torch.float64)
    return formulas.kto_loss(ratios, torch.tensor(kl, dtype=torch.float64), **{"beta": 0.5, **settings})[0].tolist()


def test_kto_by_hand():
    # beta 0.5, kl 1: desirable 1 - σ(0.5 * (3 - 1)) = 1 - σ(1) = 0.26894142; undesirable 1 - σ(0.5 * (1 - 2)) = σ(0.5) = 0.62245933
    assert kto(3.0, 2.0, 1.0) == pytest.approx([0.26894142, 0.62245933], abs=1e-8)


def test_kto_weights_each_kind_of_answer():
    # 0.26894142 * 2 and 0.62245933 * 0.5
    found = kto(3.0, 2.0, 1.0, desirable_weight=2.0, undesirable_weight=0.5)
    assert found == pytest.approx([0.53788284, 0.31122967], abs=1e-8)


def test_kto_is_bounded_by_its_weights():
    # However wrong an answer is, it costs no more than its weight: the pull of outliers fades.
    assert kto(-1e4, 1e4, 0.0, undesirable_weight=1.5) == [1.0, 1.5]
    assert kto(1e4, -1e4, 0.0) == [0.0, 0.0]
    # Small losses keep their digits: 1 - σ(50) = e^-50, which 1 - (1 - e^-50) would round to 0.
    assert kto(100.0, -100.0, 0.0) == pytest.approx([math.exp(-50)] * 2, rel=1e-9)


@given(margins, margins, st.floats(min_value=0, max_value=50))
def test_kto_is_half_at_the_reference_point_and_falls_on_the_labels_side(a: float, b: float, kl: float):
    assert kto(kl, kl, kl) == [0.5, 0.5]
    desirable, undesirable = kto(a, b, kl)
    assert desirable == pytest.approx(sigmoid(0.5 * (kl - a)), rel=1e-9)
    assert undesirable == pytest.approx(sigmoid(0.5 * (b - kl)), rel=1e-9)


def test_ktos_gradient_does_not_go_through_the_reference_point():
    # ± w β σ(x) (1 - σ(x)) at x = β (r - kl); nothing reaches the answers that kl was made from.
    ratios = torch.tensor([[3.0, 2.0]], dtype=torch.float64, requires_grad=True)
    others = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    kl = formulas.kto_kl(others, torch.tensor(4.0))
    formulas.kto_loss(ratios, kl, beta=0.5, desirable_weight=2.0).sum().backward()
    assert others.grad is None
    assert ratios.grad is not None
    up, down = sigmoid(1.0) * sigmoid(-1.0), sigmoid(0.5) * sigmoid(-0.5)
    assert ratios.grad[0].tolist() == pytest.approx([-2 * 0.5 * up, 0.5 * down], rel=1e-12)


def test_the_reference_point_is_a_mean_that_is_never_negative():
    def kl(total: float, count: float) -> float:
        return formulas.kto_kl(torch.tensor(total), torch.tensor(count)).item()

    assert kl(6.0, 4.0) == 1.5
    assert kl(-6.0, 4.0) == 0.0
    assert kl(0.0, 0.0) == 0.0
    # Ranks with means of 3 and -1 make 1 together; the mean of their clamped means would be 1.5.
    assert kl(3.0 + -1.0, 2.0) == 1.0


# ORPO.


def exact_log_odds(logp: str) -> Decimal:
    """log(p / (1 - p)) of p = e^logp with 60 digits."""
    getcontext().prec = 60
    p = Decimal(logp).exp()
    return (p / (1 - p)).ln()


def test_odds_by_hand():
    # p = 3/4 has odds 3, p = 1/4 odds 1/3: log(3 / (1/3)) = log 9
    found = formulas.log_odds_ratio(torch.tensor([[math.log(0.75), math.log(0.25)]], dtype=torch.float64))
    assert found.item() == pytest.approx(math.log(9), rel=1e-12)


def test_orpo_by_hand():
    # beta 0.1: -0.1 log σ(log 9) = -0.1 log(9/10) = 0.01053605
    found = formulas.orpo_loss(torch.tensor([[math.log(0.75), math.log(0.25)]], dtype=torch.float64), beta=0.1)
    assert found.item() == pytest.approx(0.01053605, abs=1e-8)


@pytest.mark.parametrize("logp", ["-1e-15", "-1e-9", "-1e-3", "-0.69", "-0.6931471805599453", "-0.7", "-40", "-700"])
def test_odds_are_exact_near_certainty_and_near_impossibility(logp: str):
    # Against one half, whose log-odds are 0. log(1 - exp(logp)) as written loses all digits at both ends.
    half = -math.log(2)
    found = formulas.log_odds_ratio(torch.tensor([[float(logp), half]], dtype=torch.float64)).item()
    assert found == pytest.approx(float(exact_log_odds(logp)), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("pair", [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (-1e-30, -1e4), (-1e4, -1e-30)])
def test_orpo_has_a_finite_gradient_at_certainty(pair: tuple[float, float], dtype: torch.dtype):
    logps = torch.tensor([pair], dtype=dtype, requires_grad=True)
    loss = formulas.orpo_loss(logps, beta=1.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert logps.grad is not None
    assert torch.isfinite(logps.grad).all()


@given(log_probs, log_probs, betas)
def test_orpos_gradient_is_that_of_the_odds(chosen: float, rejected: float, beta: float):
    # d log odds / d logp = 1 + p/(1-p) = 1/(1-p), and the loss falls by β σ(-log odds ratio) with it
    logps = torch.tensor([[chosen, rejected]], dtype=torch.float64, requires_grad=True)
    ratio = formulas.log_odds_ratio(logps).item()
    formulas.orpo_loss(logps, beta=beta).sum().backward()
    pull = beta * sigmoid(-ratio)
    expected = [-pull / -math.expm1(chosen), pull / -math.expm1(rejected)]
    assert logps.grad is not None
    assert logps.grad[0].tolist() == pytest.approx(expected, rel=1e-6)


@given(log_probs, log_probs)
def test_swapping_the_answers_inverts_the_odds(a: float, b: float):
    pair = torch.tensor([[a, b]], dtype=torch.float64)
    assert formulas.log_odds_ratio(pair.flip(1)).item() == -formulas.log_odds_ratio(pair).item()


# SimPO.


def test_simpo_by_hand():
    # beta 2, gamma 0.5: the logit is 2 * 0.75 - 0.5 = 1
    found = formulas.simpo_loss(one(0.75), beta=2.0, target_margin=0.5).item()
    assert found == pytest.approx(0.31326169, abs=1e-8)


@given(margins, betas, st.floats(min_value=0, max_value=20))
def test_simpos_target_is_a_shift_of_the_logit_not_of_the_margin(margin: float, beta: float, gamma: float):
    found = formulas.simpo_loss(one(margin), beta=beta, target_margin=gamma).item()
    assert found == pytest.approx(softplus(gamma - beta * margin), rel=1e-9, abs=1e-12)
    # The ratio gamma/beta is the margin, in nats per token, at which a pair costs ln 2.
    at_the_ratio = formulas.simpo_loss(one(gamma / beta), beta=beta, target_margin=gamma).item()
    assert at_the_ratio == pytest.approx(math.log(2), rel=1e-9)


def test_a_reward_models_loss_by_hand():
    # σ(1.5 − 0.5) = σ(1)
    assert formulas.reward_model_loss(one(1.5), margin=0.5).item() == pytest.approx(-math.log(sigmoid(1.0)), abs=1e-12)
    assert formulas.reward_model_loss(one(0.0)).item() == pytest.approx(math.log(2), abs=1e-12)


@given(margins, st.floats(min_value=0, max_value=5))
def test_a_reward_models_gradient_is_the_probability_of_the_wrong_order(difference: float, margin: float):
    found = slope(lambda d: formulas.reward_model_loss(d, margin=margin), difference)
    assert found == pytest.approx(-sigmoid(margin - difference), abs=1e-12)


def test_smoothed_simpo_by_hand():
    # As conservative DPO, on the same logit of 1.
    found = formulas.simpo_loss(one(0.75), beta=2.0, target_margin=0.5, label_smoothing=0.1).item()
    assert found == pytest.approx(0.41326169, abs=1e-8)


@pytest.mark.parametrize("margin", [-4.0, 0.3])
def test_simpos_gradient(margin: float):
    found = slope(lambda m: formulas.simpo_loss(m, beta=2.0, target_margin=0.5), margin)
    assert found == pytest.approx(-2.0 * sigmoid(0.5 - 2.0 * margin), rel=1e-12)


def test_simpo_stays_finite():
    found = formulas.simpo_loss(torch.tensor([-5000.0, 5000.0]), beta=2.0, target_margin=0.5)
    torch.testing.assert_close(found, torch.tensor([10000.5, 0.0]))


# Likelihood, and LD-DPO's log-probs.


def test_likelihood_is_a_mean_over_tokens():
    # 12 nats over 4 tokens, 3 over 1; an example without a chosen answer has none.
    found = formulas.nll_loss(torch.tensor([-12.0, -3.0, 0.0]), torch.tensor([4, 1, 0]))
    assert found.tolist() == [3.0, 3.0, 0.0]


def test_desensitized_by_hand():
    # 5 tokens of which 2 are beyond the other answer's length: -6 in the head, -4 in the tail; 0.25 of the tail counts.
    found = formulas.desensitized(one(-10.0), one(-6.0), tail_weight=0.25)
    assert found.item() == -7.0


@given(log_probs, log_probs)
def test_the_whole_answer_or_its_head_alone_are_the_ends(head: float, tail: float):
    whole = one(head + tail)
    assert formulas.desensitized(whole, one(head), tail_weight=1.0).item() == whole.item()
    assert formulas.desensitized(whole, one(head), tail_weight=0.0).item() == head
