"""Deviations, standard errors and figures by source, against numpy on the pairs themselves."""

import math

import numpy as np
import pytest
import torch

from dpo_operator.api.method import Method
from dpo_trainer.losses.metrics import Totals, sums
from dpo_trainer.losses.objective import Logps, Objective
from dpo_trainer.losses.spread import deviation, spread_means, spread_sums, standard_errors

pytestmark = pytest.mark.unit

PAIRS, SOURCES = 12, ("train", "mixture[0]", "mixture[1]")


def a_batch(seed: int = 0) -> tuple[Logps, torch.Tensor, torch.Tensor]:
    """Log-probs of twelve pairs, which of them count, and the source of each; none of the last source counts."""
    rng = np.random.default_rng(seed)
    policy, reference = (torch.from_numpy(rng.normal(-30, 5, (PAIRS, 2))) for _ in range(2))
    logps = Logps(policy, policy, torch.from_numpy(rng.integers(1, 9, (PAIRS, 2))), reference, reference)
    source = torch.tensor([0] * 5 + [1] * 5 + [2] * 2)
    counts = torch.ones(PAIRS, dtype=torch.bool)
    counts[[3, 10, 11]] = False
    return logps, counts, source


def total(name: str, pieces: int = 1) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Sums over the batch in pieces; margins and losses of the pairs that count."""
    objective = Objective(Method.model_validate({"name": name}))
    logps, counts, source = a_batch()
    kl = torch.tensor(0.1, dtype=torch.float64) if objective.needs_kl else None
    totals = Totals()
    for part in np.array_split(np.arange(PAIRS), pieces):
        some = Logps(*(value[part] for value in (logps.policy, logps.policy_head, logps.tokens)),
                     *(value[part] for value in (logps.reference, logps.reference_head)))  # fmt: skip
        loss = objective.loss(some, kl)
        found = sums(objective, some, loss, kl, counts[part])
        found |= spread_sums(objective, some, loss, counts[part], source[part], SOURCES)
        totals.add(found, torch.device("cpu"))
    rewards = objective.rewards(logps)
    return (
        totals.over_ranks(lambda value: value),
        (rewards[:, 0] - rewards[:, 1])[counts].numpy(),
        objective.loss(logps, kl)[counts].numpy(),
    )


@pytest.mark.parametrize("pieces", [1, 4])
def test_deviation_and_errors_are_those_of_the_pairs(pieces: int):
    found, margins, losses = total("dpo", pieces)
    values = spread_means(found, SOURCES) | standard_errors(found)
    assert values["margins_std"] == pytest.approx(margins.std(ddof=1))
    assert values["rewards/margins_se"] == pytest.approx(margins.std(ddof=1) / math.sqrt(9))
    assert values["loss_se"] == pytest.approx(losses.std(ddof=1) / math.sqrt(9))
    assert values["pairs"] == 9


def test_the_error_of_ktos_loss_is_by_answer_mean():
    found, _, losses = total("kto")
    # The logged loss is the mean over answers, two in each example.
    assert standard_errors(found)["loss_se"] == pytest.approx((losses / 2).std(ddof=1) / math.sqrt(9))


def test_each_source_has_its_own_figures_and_one_without_pairs_none():
    found, margins, _ = total("dpo", 3)
    values = spread_means(found, SOURCES)
    for name, part in (("train", margins[:4]), ("mixture[0]", margins[4:])):
        assert values[f"source/{name}/pairs"] == len(part)
        assert values[f"source/{name}/accuracies"] == pytest.approx((part > 0).mean())
        assert values[f"source/{name}/margins"] == pytest.approx(part.mean())
        assert values[f"source/{name}/margins_std"] == pytest.approx(part.std(ddof=1))
    assert not [key for key in values if "mixture[1]" in key]


def test_drift_is_the_mean_of_absolute_log_ratios_per_token():
    found, _, _ = total("dpo")
    logps, counts, _ = a_batch()
    each = ((logps.policy - logps.reference).abs() / logps.tokens)[counts]
    assert spread_means(found)["logratio_abs_per_token"] == pytest.approx(each.mean().item())
    assert "logratio_abs_per_token" not in spread_means(total("simpo")[0])


def test_one_value_has_no_deviation():
    assert math.isnan(deviation(1, 3.0, 9.0))
    assert deviation(3, 3.0, 3.0) == 0.0
