"""Preference losses and reward figures: pure functions of answer log-probs.

Log-probs are sums over the answer's tokens, in nats; a mean over tokens is another loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def log_ratios(policy: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Policy-minus-reference log-ratios of the chosen and of the rejected answers.

    policy, reference: [pairs, 2] float, nats; column 0 is the chosen answer, column 1 the rejected one.
    Returns two tensors [pairs], nats.
    """
    ratios = policy - reference
    return ratios[:, 0], ratios[:, 1]


def dpo_loss(margin: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood that the chosen answer wins (Rafailov et al. 2023, 2305.18290, eq. 7).

    margin: [pairs] float, nats. Policy-minus-reference log-ratio, chosen minus rejected.
    beta: 1/nats, > 0.
    label_smoothing: probability in [0, 0.5) that a label is the wrong way round; above 0 this is conservative DPO
        (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3), the weighted mean of both labels' losses.
    Returns [pairs], nats; the caller averages.
    """
    logit = beta * margin
    return -(1 - label_smoothing) * F.logsigmoid(logit) - label_smoothing * F.logsigmoid(-logit)


def rewards(policy: Tensor, reference: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    """Implicit rewards of the chosen and of the rejected answers: beta times their log-ratios (2305.18290, section 5).

    policy, reference: [pairs, 2] float, nats. Returns two tensors [pairs], dimensionless.
    """
    chosen, rejected = log_ratios(policy, reference)
    return beta * chosen, beta * rejected


# Column names of `pair_metrics`: the keys that TRL logs, so that curves can be compared.
PAIR_METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


def pair_metrics(loss: Tensor, policy: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """What is logged about each pair, in the order of PAIR_METRICS.

    loss: [pairs], nats. policy, reference: [pairs, 2], nats.
    Accuracy is strict: a tie, as before the first update, counts as wrong.
    Returns [pairs, 7] float64, detached. float64, so that sums over many pairs keep their digits.
    """
    with torch.no_grad():
        policy, reference = policy.double(), reference.double()
        chosen, rejected = rewards(policy, reference, beta=beta)
        columns = [
            loss.double(),
            chosen,
            rejected,
            chosen - rejected,
            (chosen > rejected).double(),
            policy[:, 0],
            policy[:, 1],
        ]
        return torch.stack(columns, dim=1)
