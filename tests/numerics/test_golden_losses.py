"""Losses and rewards against published implementations' values for the same log-probs, to 1e-6."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_trainer.losses import dpo_loss, log_ratios, rewards

pytestmark = pytest.mark.numerics

TOLERANCE = {"atol": 1e-6, "rtol": 0.0}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "data" / "golden_dpo_losses.json").read_text())


def pairs(golden: dict[str, Any], who: str, dtype: torch.dtype) -> torch.Tensor:
    columns = [golden["inputs"][f"{who}_{answer}"] for answer in ("chosen", "rejected")]
    return torch.tensor(columns, dtype=torch.float64).T.to(dtype)


@pytest.mark.parametrize(("label_smoothing", "name"), [(0.0, "sigmoid"), (0.1, "cdpo_eps0.1")])
def test_dpo(golden: dict[str, Any], label_smoothing: float, name: str):
    policy, reference = (pairs(golden, who, torch.float64) for who in ("policy", "ref"))
    chosen, rejected = log_ratios(policy, reference)
    loss = dpo_loss(chosen - rejected, beta=golden["beta"], label_smoothing=label_smoothing)
    expected = torch.tensor(golden["per_pair"][name], dtype=torch.float64)
    torch.testing.assert_close(loss, expected, **TOLERANCE)


def test_dpo_in_the_trainers_own_precision(golden: dict[str, Any]):
    # float32 log-probs of up to 100 nats carry errors of 4e-6 nats, beta times which is below the bar.
    policy, reference = (pairs(golden, who, torch.float32) for who in ("policy", "ref"))
    chosen, rejected = log_ratios(policy, reference)
    expected = torch.tensor(golden["per_pair"]["sigmoid"])
    torch.testing.assert_close(dpo_loss(chosen - rejected, beta=golden["beta"]), expected, atol=2e-6, rtol=0.0)


def test_mean_equals_liger(golden: dict[str, Any]):
    policy, reference = (pairs(golden, who, torch.float64) for who in ("policy", "ref"))
    chosen, rejected = log_ratios(policy, reference)
    mean = dpo_loss(chosen - rejected, beta=golden["beta"]).mean().item()
    assert mean == pytest.approx(golden["mean_from_liger_0.8.5"]["sigmoid"], abs=1e-6)


def test_rewards(golden: dict[str, Any]):
    policy, reference = (pairs(golden, who, torch.float64) for who in ("policy", "ref"))
    for found, answer in zip(rewards(policy, reference, beta=golden["beta"]), ("chosen", "rejected"), strict=True):
        expected = torch.tensor(golden["per_pair"][f"{answer}_rewards"], dtype=torch.float64)
        torch.testing.assert_close(found, expected, **TOLERANCE)
