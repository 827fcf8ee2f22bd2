"""The benchmark of rounds: its jobs keep the rules, and its bars say what is missed."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.rounds import Point, document, missed
from dpo_operator.api.rules import spec as rules
from dpo_operator.api.rules import support
from dpo_operator.api.types import DPOJob

pytestmark = pytest.mark.unit

POINTS = [
    Point(0, "initial", 0, 0.6, 0.05, 0.0, None, 0),
    Point(0, "on-policy", 1, 1.2, 0.05, 1.0, 0.66, 100),
    Point(0, "on-policy", 2, 1.8, 0.05, 3.1, 0.83, 200),
    Point(0, "on-policy", 3, 2.3, 0.05, 5.4, 0.91, 300),
    Point(0, "offline", 2, 1.6, 0.05, 3.1, 0.81, 200),
    Point(0, "offline", 3, 1.76, 0.05, 5.9, 0.83, 300),
]


@pytest.mark.parametrize("rounds", [1, 3])
def test_its_jobs_keep_the_rules(rounds: int):
    job = DPOJob.model_validate(document(Path("/model"), Path("/data"), rounds=rounds, prompts=64, seed=0))
    assert rules.violations(job) == []
    assert support.unsupported(job.spec) == []


def test_bars_that_are_reached_say_nothing():
    assert missed(POINTS, 3) == []


def test_bars_that_are_missed_are_named():
    weak = [*POINTS[:3], replace(POINTS[3], reward=1.9), *POINTS[4:]]
    assert missed(weak, 3) == ["seed 0: round 3 leads by 0.14 ± 0.07, less than 3 standard errors"]
    far = [*POINTS[:2], replace(POINTS[2], kl=6.0), *POINTS[3:]]
    assert missed(far, 3) == ["seed 0: round 2 has reward 1.80 at KL 6.00, offline 1.76 at 5.90"]
