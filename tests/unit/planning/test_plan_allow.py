"""What the administrator does not allow is refused before anything is made."""

from dataclasses import replace
from datetime import timedelta

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api.allow import Allow
from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.planning.plan import plan
from tests.unit.planning.build import (
    NOON,
    SETTINGS,
    a_child,
    a_job,
    a_pod,
    a_status,
    a_view,
    condition,
    decide,
)

pytestmark = pytest.mark.unit

ON_THE_HOST = a_job(pod={"network": {"hostNetwork": True}})


def test_a_new_job_that_asks_for_too_much_fails_and_says_what_allows_it() -> None:
    result = decide(DPOJobStatus(), a_view(claim=None, support=()), ON_THE_HOST)
    assert result.status.state is State.FAILED
    assert condition(result.status, c.FAILED) == ("True", c.NOT_ALLOWED)
    assert "spec.pod.network.hostNetwork" in result.status.message
    assert "allow.hostNetwork" in result.status.message
    assert result.actions == ()
    allowing = replace(SETTINGS, allow=Allow(host_network=True))
    assert plan(ON_THE_HOST, DPOJobStatus(), a_view(claim=None, support=()), NOON, allowing).status.phase == "prepare"


def test_a_job_accepted_before_makes_no_new_pods_until_it_is_allowed() -> None:
    waiting = decide(a_status(created=False), a_view(), ON_THE_HOST)
    assert condition(waiting.status, c.RUNNING) == ("False", c.NOT_ALLOWED)
    assert waiting.actions == ()
    later = NOON + timedelta(seconds=10)
    allowing = replace(SETTINGS, allow=Allow(host_network=True))
    made = plan(ON_THE_HOST, waiting.status, a_view(), later, allowing)
    assert [action.kind for action in made.actions] == ["Job"]


def test_pods_that_run_already_are_left_alone() -> None:
    pods = [a_pod(index=index) for index in (0, 1)]
    result = decide(a_status(), a_view(a_child(), *pods), ON_THE_HOST)
    assert condition(result.status, c.RUNNING)[0] == "True"
