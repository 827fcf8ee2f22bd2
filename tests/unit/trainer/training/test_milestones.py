"""Which steps are logged, and which of them tell how large their update was."""

from types import SimpleNamespace
from typing import Any

import pytest

from dpo_trainer.training.milestones import Milestones
from tests.unit.trainer.diagnosis.records import spec

pytestmark = pytest.mark.unit


def test_the_first_step_is_logged_whatever_the_interval():
    job = spec(training={"logEverySteps": 7})
    run: Any = SimpleNamespace(spec=job, restored=None, evaluation=None, total_steps=100)
    milestones = Milestones(run)
    # Of logged steps one in ten, and the first, which other rules compare with.
    assert [step for step in range(1, 101) if milestones.is_update_measured(step)] == [1, 70]
