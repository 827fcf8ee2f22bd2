"""Preference losses: pure functions of answer log-probs, one for each paper.

Log-probs are natural logarithms, in nats: sums over an answer's tokens, or means where a function says so. A log-ratio is
the policy's log-prob minus the reference's; a margin is the chosen answer's figure minus the rejected one's. Every loss
has the shape of its inputs; the caller averages. docs/methods tells when to use which, and where projects differ.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_loss(margin: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood that the chosen answer wins (Rafailov et al. 2023, 2305.18290, eq. 7).

    margin: [pairs] float, nats. Margin of log-ratios: sums for DPO, means over tokens for length-normalised DPO (Lambert
        et al. 2024, 2411.15124, eq. 6), with down-weighted tails for LD-DPO (see desensitized).
    beta: 1/nats, > 0.
    label_smoothing: probability in [0, 0.5) that a label is the wrong way round; above 0 this is conservative DPO
        (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3), the weighted mean of both labels' losses.
    Returns [pairs], nats.
    """
    logit = beta * margin
    return -(1 - label_smoothing) * F.logsigmoid(logit) - label_smoothing * F.logsigmoid(-logit)


def robust_dpo_loss(margin: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """DPO's loss, unbiased under flipped labels (Chowdhury et al. 2024, 2403.00409, eq. 12).

    label_smoothing: probability in [0, 0.5) that a label is the wrong way round. The expectation over such flips is the loss
        of the true labels, so it can be negative.
    """
    logit, kept, flipped = beta * margin, 1 - label_smoothing, label_smoothing
    return (flipped * F.logsigmoid(-logit) - kept * F.logsigmoid(logit)) / (kept - flipped)


def ipo_loss(margin: Tensor, *, beta: float) -> Tensor:
    """Squared distance of the margin from 1/(2 beta) (Azar et al. 2023, 2310.12036, eq. 17; beta is its tau).

    margin: [pairs], nats, of log-ratios: means over tokens by default, sums as the formula is printed.
    """
    return (margin - 1 / (2 * beta)) ** 2


def hinge_loss(margin: Tensor, *, beta: float) -> Tensor:
    """How far beta times the margin falls short of 1 (SLiC-HF, Zhao et al. 2023, 2305.10425, on DPO's log-ratios)."""
    return torch.relu(1 - beta * margin)


def kto_loss(
    log_ratios: Tensor, kl: Tensor, *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Tensor:
    """One minus the value of each answer under a Kahneman-Tversky utility (Ethayarajh et al. 2024, 2402.01306, eq. 8).

    log_ratios: [examples, 2], nats: column 0 desirable answers, column 1 undesirable ones.
    kl: scalar, nats, >= 0, without gradient: the reference point, an estimate of the KL divergence from the reference.
    Returns [examples, 2].
    """
    # 1 - sigmoid(x) as sigmoid(-x), which keeps its digits when the value is near 1.
    desirable = torch.sigmoid(beta * (kl - log_ratios[:, 0]))
    undesirable = torch.sigmoid(beta * (log_ratios[:, 1] - kl))
    return torch.stack([desirable_weight * desirable, undesirable_weight * undesirable], dim=1)


def kto_kl(log_ratio_sum: Tensor, count: Tensor) -> Tensor:
    """KTO's reference point: the mean log-ratio of answers that belong to other prompts, at least 0 (2402.01306, sec. 4.2).

    Both arguments are scalars over the whole batch, of all ranks: a mean of the ranks' clamped means would be another number.
    Without any such answer it is 0.
    """
    return (log_ratio_sum / count.clamp(min=1)).clamp(min=0).detach()


def log_odds_ratio(mean_logps: Tensor) -> Tensor:
    """Logarithm of the odds of the chosen answer over those of the rejected one (2403.07691, eq. 4 to 6).

    mean_logps: [pairs, 2], nats per token, < 0. Odds of p are p/(1-p).
    """
    # Certainty would have infinite odds, so the log-prob is held one rounding step below it. expm1 keeps the digits of 1-p
    # there; at the other end its logarithm vanishes beside that of p.
    bounded = mean_logps.clamp(max=-torch.finfo(mean_logps.dtype).eps)
    log_odds = bounded - torch.log(-torch.expm1(bounded))
    return log_odds[:, 0] - log_odds[:, 1]


def orpo_loss(mean_logps: Tensor, *, beta: float) -> Tensor:
    """ORPO's odds-ratio term (Hong et al. 2024, 2403.07691, eq. 7), to be added to the chosen answer's likelihood.

    mean_logps: [pairs, 2], nats per token. beta: the paper's lambda.
    """
    return -beta * F.logsigmoid(log_odds_ratio(mean_logps))


def simpo_loss(margin: Tensor, *, beta: float, target_margin: float, label_smoothing: float = 0.0) -> Tensor:
    """Reference-free loss with a target margin (Meng et al. 2024, 2405.14734, eq. 6).

    margin: [pairs], nats per token, of mean log-probs. target_margin: the paper's gamma.
    """
    logit = beta * margin - target_margin
    return -(1 - label_smoothing) * F.logsigmoid(logit) - label_smoothing * F.logsigmoid(-logit)


def reward_model_loss(difference: Tensor, *, margin: float | Tensor = 0.0) -> Tensor:
    """Negative log-likelihood that the chosen answer wins under Bradley and Terry's model (Ouyang et al. 2022, 2203.02155, eq. 1).

    difference: [pairs], reward of the chosen answer less that of the rejected one. margin: by how much it should be larger, also of each
        pair, [pairs] (Touvron et al. 2023, 2307.09288, eq. 2).
    """
    return -F.logsigmoid(difference - margin)


def nll_loss(logps: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood per token (the second term of Pang et al. 2024, 2404.19733, eq. 2).

    logps: [pairs], nats, sums over the tokens that are counted in tokens, int64 [pairs].
    """
    return -logps / tokens.clamp(min=1)


def desensitized(whole: Tensor, head: Tensor, *, tail_weight: float) -> Tensor:
    """Log-probs in which the part of an answer beyond the other answer's length counts less (LD-DPO, 2409.06411, eq. 9).

    whole, head: sums over all tokens, and over as many as the shorter answer of the pair has. tail_weight: the paper's alpha.
    """
    return tail_weight * whole + (1 - tail_weight) * head
