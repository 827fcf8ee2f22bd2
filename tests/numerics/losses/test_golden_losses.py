"""Losses and rewards against published implementations' values for the same log-probs, to 1e-6."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_operator.api.method import Method
from dpo_trainer.losses.objective import Logps, Objective

pytestmark = pytest.mark.numerics

TOLERANCE = {"atol": 1e-6, "rtol": 0.0}
METHODS: dict[str, dict[str, Any]] = {
    "sigmoid": {"name": "dpo"},
    "cdpo_eps0.1": {"name": "dpo", "labelSmoothing": 0.1},
    "ipo_sum_logps": {"name": "ipo", "reduction": "sum"},
}
# Published as means over the pairs.
MEANS: dict[str, dict[str, Any]] = {
    "sigmoid": {"name": "dpo"},
    "hinge": {"name": "hinge"},
    "robust": {"name": "dpo", "robust": True},
}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "data" / "golden_dpo_losses.json").read_text())


def logps(golden: dict[str, Any], dtype: torch.dtype = torch.float64) -> Logps:
    def answers(who: str) -> torch.Tensor:
        columns = [golden["inputs"][f"{who}_{answer}"] for answer in ("chosen", "rejected")]
        return torch.tensor(columns, dtype=torch.float64).T.to(dtype)

    policy, reference = answers("policy"), answers("ref")
    return Logps(policy, policy, torch.ones(policy.shape, dtype=torch.int64), reference, reference)


def objective(golden: dict[str, Any], method: dict[str, Any]) -> Objective:
    return Objective(Method.model_validate({"beta": golden["beta"], **method}))


@pytest.mark.parametrize("name", METHODS)
def test_each_pairs_loss(golden: dict[str, Any], name: str):
    found = objective(golden, METHODS[name]).loss(logps(golden))
    torch.testing.assert_close(found, torch.tensor(golden["per_pair"][name], dtype=torch.float64), **TOLERANCE)


@pytest.mark.parametrize("name", MEANS)
def test_mean_equals_liger(golden: dict[str, Any], name: str):
    method = MEANS[name]
    if name in golden["label_smoothing_used"]:
        method = {**method, "labelSmoothing": golden["label_smoothing_used"][name]}
    found = objective(golden, method).loss(logps(golden)).mean().item()
    assert found == pytest.approx(golden["mean_from_liger_0.8.5"][name], abs=1e-6)


def test_dpo_on_float32_log_probs(golden: dict[str, Any]):
    # float32 log-probs of up to 100 nats carry errors of 4e-6 nats, beta times which is below the bar.
    found = objective(golden, METHODS["sigmoid"]).loss(logps(golden, torch.float32))
    torch.testing.assert_close(found, torch.tensor(golden["per_pair"]["sigmoid"]), atol=2e-6, rtol=0.0)


def test_rewards(golden: dict[str, Any]):
    found = objective(golden, METHODS["sigmoid"]).rewards(logps(golden))
    for side, answer in enumerate(("chosen", "rejected")):
        expected = torch.tensor(golden["per_pair"][f"{answer}_rewards"], dtype=torch.float64)
        torch.testing.assert_close(found[:, side], expected, **TOLERANCE)
