"""Rules of a job that override the classes of the exit-code table."""

from dataclasses import replace
from datetime import timedelta

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api.failurepolicy import FailureAction, FailurePolicy, FailureRule
from dpo_operator.planning.failures import POD_REASONS, Failure, classify
from dpo_operator.planning.restarts import MAX_UNCOUNTED_WITHOUT_STEPS, after_failure, apply_rules
from dpo_operator.planning.transitions import Moment
from tests.unit.planning.build import NOON, a_child, a_job, a_pod, a_status, a_view, condition, decide, ended

pytestmark = pytest.mark.unit

FAIL, RESTART, UNCOUNTED = FailureAction.FAIL, FailureAction.RESTART, FailureAction.RESTART_UNCOUNTED
CRASH = Failure("InternalError", "counted", "rank 1: NCCL error: unhandled system error", exit_code=70)
EVICTION = Failure("Evicted", "infrastructure", "rank 1 was taken away: Evicted")
BAD_DATA = Failure("BadDataset", "configuration", "2 of 10 rows are empty", exit_code=65)


def policy(*rules: FailureRule, **fields: int) -> FailurePolicy:
    return FailurePolicy(rules=list(rules), max_restarts=1000, **fields)


def rule(action: FailureAction, **matchers: object) -> FailureRule:
    return FailureRule.model_validate({"action": action, **matchers})


@pytest.mark.parametrize(
    ("failure", "matchers", "matches"),
    [
        (CRASH, {"exitCodes": [1, 70]}, True),
        (CRASH, {"exitCodes": [71]}, False),
        (EVICTION, {"exitCodes": [70]}, False),
        (EVICTION, {"reasons": ["NodeLost", "Evicted"]}, True),
        (EVICTION, {"reasons": ["Preempted"]}, False),
        (CRASH, {"messageContains": "NCCL error"}, True),
        (CRASH, {"messageContains": "nccl error"}, False),
        (CRASH, {"messageContains": "N.*L"}, False),
        (CRASH, {"exitCodes": [70], "reasons": ["InternalError"], "messageContains": "NCCL"}, True),
        (CRASH, {"exitCodes": [70], "reasons": ["Hang"]}, False),
        (CRASH, {"exitCodes": [70], "messageContains": "CUDA"}, False),
    ],
)
def test_every_matcher_that_is_given_must_match(failure, matchers, matches):
    found, by_rule = apply_rules(failure, policy(rule(FAIL, **matchers)))
    assert by_rule is matches
    assert found.failure_class == ("configuration" if matches else failure.failure_class)


def test_the_first_rule_that_matches_decides():
    rules = policy(rule(RESTART, reasons=["Hang"]), rule(UNCOUNTED, exitCodes=[70]), rule(FAIL, exitCodes=[70]))
    found, _ = apply_rules(CRASH, rules)
    assert found.failure_class == "infrastructure"
    assert "failurePolicy.rules[1] says RestartUncounted" in found.message


@pytest.mark.parametrize(
    ("failure", "action", "restarts", "counted"),
    [(BAD_DATA, RESTART, 1, 1), (BAD_DATA, UNCOUNTED, 1, 0), (EVICTION, RESTART, 1, 1), (CRASH, UNCOUNTED, 1, 0), (CRASH, FAIL, 0, 0)],
)  # fmt: skip
def test_a_rule_overrides_the_class(failure, action, restarts, counted):
    plan = after_failure(a_status(), failure, policy(rule(action, reasons=[failure.reason])), Moment(NOON, 1))
    assert (plan.status.restarts, plan.status.counted_restarts) == (restarts, counted)
    assert c.is_true(plan.status.conditions, c.FAILED) is (action is FAIL)
    if action is FAIL:
        assert condition(plan.status, c.FAILED) == ("True", "InternalError")


@pytest.mark.fault(40)
def test_uncounted_restarts_of_a_rule_end_without_progress():
    rules = policy(rule(UNCOUNTED, exitCodes=[70]))
    status = a_status()
    for i in range(3):
        status = after_failure(status, replace(CRASH, step=20), rules, Moment(NOON + timedelta(minutes=i), 1)).status
        assert not c.is_true(status.conditions, c.FAILED)
    # A step of progress starts the count anew.
    further = after_failure(status, replace(CRASH, step=21), rules, Moment(NOON + timedelta(minutes=4), 1)).status
    assert (further.restarts, further.restarts_without_progress) == (4, 1)
    last = after_failure(status, replace(CRASH, step=20), rules, Moment(NOON + timedelta(minutes=4), 1)).status
    assert condition(last, c.FAILED) == ("True", c.NO_PROGRESS)
    assert (last.restarts, last.counted_restarts) == (3, 0)


def test_uncounted_restarts_of_a_rule_end_in_phases_without_steps():
    rules = policy(rule(UNCOUNTED, exitCodes=[70]))
    status = a_status("prepare")
    for i in range(MAX_UNCOUNTED_WITHOUT_STEPS):
        status = after_failure(status, CRASH, rules, Moment(NOON + timedelta(hours=i), 1)).status
    assert not c.is_true(status.conditions, c.FAILED)
    last = after_failure(status, CRASH, rules, Moment(NOON + timedelta(days=1), 1)).status
    assert condition(last, c.FAILED) == ("True", c.NO_PROGRESS)


def test_a_rule_applies_to_what_a_pod_shows():
    job = a_job(failurePolicy={"rules": [{"exitCodes": [139], "action": "Fail"}]})
    crashed = decide(a_status(), a_view(a_child(), ended(0, 75), ended(1, 139)), job)
    assert c.is_true(crashed.status.conditions, c.FAILED)
    killed = decide(a_status(), a_view(a_child(), a_pod(0), ended(1, 137)), job)
    assert killed.status.restarts == 1


@pytest.mark.parametrize(
    ("reason", "shown"),
    [("OutOfnvidia.com/gpu", "OutOfResources"), ("Evicted", "Evicted"), ("some-agent: 4711", "PodFailed"), ("", "PodFailed")],
)  # fmt: skip
def test_reasons_are_bounded_whatever_others_write(reason, shown):
    found = classify(a_pod(pod_phase="Failed", reason=reason, message="words"))
    assert found is not None
    assert found.reason == shown
    assert "words" in found.message
    disrupted = classify(ended(0, 143, disruption="AnAgentOfSomebody"))
    assert disrupted is not None
    assert disrupted.reason == "Disrupted"
    assert len(set(POD_REASONS.values())) < 10
