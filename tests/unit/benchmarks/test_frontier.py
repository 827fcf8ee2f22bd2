"""The benchmark of beta and divergence: its job keeps the rules, and its bar says what is missed."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.frontier import Point, document, missed
from dpo_operator.api.rules import spec as rules
from dpo_operator.api.rules import support
from dpo_operator.api.types import DPOJob

pytestmark = pytest.mark.unit

POINTS = [
    Point(0.03, 0.6, 0.2, 0.3, 9.0, 0.4),
    Point(0.1, 0.6, 0.3, 0.2, 4.0, 0.3),
    Point(1.0, 0.6, 0.5, 0.1, 1.0, 0.1),
]


def test_its_job_keeps_the_rules():
    job = DPOJob.model_validate(document(Path("/model"), Path("/data"), betas=[0.03, 0.1], seed=0))
    assert rules.violations(job) == []
    assert support.unsupported(job.spec) == []


def test_a_divergence_that_falls_says_nothing():
    assert missed(POINTS) == []


@pytest.mark.parametrize("kl", [4.0, 4.5])
def test_one_that_does_not_fall_is_named(kl: float):
    found = missed([*POINTS[:2], replace(POINTS[2], kl=kl)])
    assert found == [f"KL is {kl:.2f} ± 0.10 at beta 1, and 4.00 ± 0.30 at 0.1"]
