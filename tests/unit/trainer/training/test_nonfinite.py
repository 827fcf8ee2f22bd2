"""When a run may leave a step out."""

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.training import NonFinite
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.training.nonfinite import NonFinitePolicy

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_a_run_may_skip_as_many_steps_as_the_limit_allows(action: str):
    bad = NonFinitePolicy(NonFinite(action=action, max=2))

    assert [bad.decide(7, "the gradient"), bad.decide(9, "the gradient")] == [action, action]
    with pytest.raises(
        TrainerError, match=r"Step 12: .* in the loss of 1 of 4 pairs.* allows 2 .* steps 7, 9 before"
    ) as caught:
        bad.decide(12, "the loss of 1 of 4 pairs")
    assert caught.value.exit_code is ExitCode.NON_FINITE
    assert bad.skipped == [7, 9]


def test_steps_before_a_restart_count():
    with pytest.raises(TrainerError, match="steps 1, 2, 3 before"):
        NonFinitePolicy(NonFinite(), [1, 2, 3]).decide(4, "the gradient")


def test_fail_fails_at_once():
    with pytest.raises(TrainerError, match=r"Lower training\.learningRate"):
        NonFinitePolicy(NonFinite(action="fail")).decide(1, "the gradient")
