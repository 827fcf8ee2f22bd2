"""When to restart, when to stop trying."""

from dataclasses import replace
from datetime import timedelta

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.failurepolicy import FailurePolicy
from dpo_operator.api.status import MAX_HISTORY, Restart, State
from dpo_operator.planning import retrying
from dpo_operator.planning.failures import Failure
from dpo_operator.planning.progress import progress_status
from dpo_operator.planning.restarts import after_failure, backoff_seconds
from dpo_operator.planning.transitions import Moment
from tests.unit.planning.build import NOON, a_child, a_job, a_pod, a_reading, a_status, a_view, condition, decide, ended

pytestmark = pytest.mark.unit

CRASH = Failure("InternalError", "counted", "rank 1 crashed.")
EVICTION = Failure("Evicted", "infrastructure", "rank 1 was evicted.")
POLICY = FailurePolicy(max_restarts=2, window_seconds=600)


def fail(status, failure=CRASH, *, policy=POLICY, minutes=0.0, step=0):
    """One failure, so many minutes after noon, with so many steps finished."""
    failure = Failure(failure.reason, failure.failure_class, failure.message, step=step)
    return after_failure(status, failure, policy, Moment(NOON + timedelta(minutes=minutes), 1)).status


def test_restarts_within_the_window_are_limited():
    status = a_status()
    for i in range(2):
        status = fail(status, minutes=i, step=i + 1)
        assert status.attempts.train == i + 2
    last = fail(status, minutes=2, step=3)
    assert condition(last, c.FAILED) == ("True", c.MAX_RESTARTS_EXCEEDED)
    assert "rank 1 crashed." in last.message
    assert "failurePolicy.maxRestarts is 2" in last.message
    assert last.attempts == status.attempts


def test_restarts_before_the_window_are_forgotten():
    status = a_status()
    for i in range(6):
        status = fail(status, minutes=6 * i, step=i + 1)
    assert (status.restarts, status.counted_restarts) == (6, 6)
    assert not c.is_true(status.conditions, c.FAILED)
    assert len(status.counted_restart_times) == 2


def test_infrastructure_never_uses_up_the_budget():
    status = a_status()
    for i in range(30):
        status = fail(status, EVICTION, minutes=i)
    assert (status.restarts, status.counted_restarts, status.attempts.train) == (30, 0, 31)
    assert len(status.restart_history) == MAX_HISTORY
    assert not c.is_true(status.conditions, c.FAILED)


def test_a_node_that_keeps_ending_the_pods_fails_the_job():
    refused = Failure("RefusedByNode", "infrastructure", "Node rank 0 was refused by its node.")
    status = fail(a_status(), refused, step=5)
    for i in range(9):
        # Something else in between, and then a step further: it's worth another try each time.
        status = fail(status, EVICTION if i == 4 else refused, minutes=i, step=6)
    assert not c.is_true(status.conditions, c.FAILED)
    for i in range(6):
        status = fail(status, refused, minutes=20 + i, step=6)
    assert not c.is_true(status.conditions, c.FAILED)
    status = fail(status, refused, minutes=30, step=6)
    assert condition(status, c.FAILED) == ("True", c.NO_PROGRESS)
    assert "The last 10 restarts had such reasons" in status.message
    # A retry gets all its tries again.
    retried = retrying.retry_finished(
        a_job(metadata={"annotations": {names.ANNOTATION_RETRY: "1"}}), status, Moment(NOON + timedelta(minutes=50), 1)
    ).status
    for i in range(10):
        retried = fail(retried, refused, minutes=60 + i, step=6)
        assert not c.is_true(retried.conditions, c.FAILED)
    assert c.is_true(fail(retried, refused, minutes=80, step=6).conditions, c.FAILED)


@pytest.mark.parametrize("peer", [(), (ended(1, 143, deleting=True),)], ids=["gone", "told to stop"])
def test_ranks_that_lose_each_other_again_and_again_end(peer):
    """Kubernetes deletes the others as soon as one rank has failed, and whoever made the first one fail is not to be seen."""
    status, now = a_status(), NOON
    for attempt in range(1, 12):
        assert status.attempts.train == attempt
        pods = [replace(pod, attempt=attempt) for pod in (ended(0, 75, failed_seconds=11.0), *peer)]
        view = a_view(a_child(attempt=attempt, failed=True, failed_seconds=11.0), *pods)
        status = decide(status.model_copy(update={"active_job": None}), view, now=now).status
        now += timedelta(minutes=3)
    assert status.counted_restarts == 0
    assert condition(status, c.FAILED) == ("True", c.NO_PROGRESS)


def test_a_gang_that_never_has_all_its_nodes_may_wait_for_ever():
    status = a_status()
    for i in range(30):
        status = fail(status, Failure("GangTimedOut", "infrastructure", "1 of 2 pods had a node."), minutes=i)
    # Nor do these count when something else happens.
    status = fail(status, Failure("NodeRestarted", "infrastructure", "Its node was started anew."), minutes=31)
    assert not c.is_true(status.conditions, c.FAILED)


def test_an_export_that_people_stop_again_and_again_goes_on():
    """Without ranks there is no other rank that could have stopped it."""
    status = a_status("export")
    for i in range(20):
        status = fail(status, Failure("Terminated", "infrastructure", "It was told to stop."), minutes=i)
    assert not c.is_true(status.conditions, c.FAILED)


def test_a_long_termination_message_does_not_hide_its_consequence():
    policy = FailurePolicy(rules=[{"reasons": ["InternalError"], "action": "Restart"}])
    told = after_failure(a_status(), replace(CRASH, message="x" * 5000), policy, Moment(NOON, 1))
    for text in (told.status.restart_history[0].message, told.status.message, told.events[0].message):
        assert "failurePolicy.rules[0] says Restart." in text
    assert told.events[0].message.endswith("All pods restart as attempt 2; this counts against maxRestarts.")
    assert len(told.events[0].message) == 1000


def test_configuration_fails_at_once_with_the_trainers_words():
    result = decide(a_status(), a_view(a_child(), ended(0, 78), a_pod(1)))
    assert condition(result.status, c.FAILED) == ("True", "InvalidConfiguration")
    assert (result.status.restarts, result.status.attempts.train, result.status.state) == (0, 1, State.FAILED)


def test_three_restarts_without_progress_are_enough():
    generous = FailurePolicy(max_restarts=100)
    status = fail(a_status(), policy=generous, step=20)
    for _ in range(2):
        status = fail(status, policy=generous, step=20)
    assert (status.restarts, status.restarts_without_progress) == (3, 3)
    status = fail(status, policy=generous, step=20)
    assert condition(status, c.FAILED) == ("True", c.NO_PROGRESS)
    assert "beyond step 20" in status.message


def test_one_step_of_progress_starts_the_count_anew():
    generous = FailurePolicy(max_restarts=100)
    status = a_status()
    for step in range(20):
        status = fail(status, policy=generous, step=step // 3)
    assert status.restarts == 20
    assert not c.is_true(status.conditions, c.FAILED)


def test_progress_that_was_read_counts_when_the_rank_left_no_report():
    status = a_status(progress=progress_status(a_reading(15), NOON), furthest_step=14, restarts_without_progress=3)
    assert fail(status).furthest_step == 15
    # A reading of an earlier attempt says nothing about this one.
    old = a_status(
        attempt=2, progress=progress_status(a_reading(15), NOON), furthest_step=14, restarts_without_progress=3
    )
    assert condition(fail(old), c.FAILED) == ("True", c.NO_PROGRESS)


def test_prepare_has_no_steps_and_only_its_budget():
    status = a_status("prepare")
    for i in range(5):
        status = fail(status, policy=FailurePolicy(max_restarts=5), minutes=i)
    assert status.attempts.prepare == 6
    assert c.is_true(fail(status, policy=FailurePolicy(max_restarts=5), minutes=6).conditions, c.FAILED)


def restarted(seconds_ago: float) -> Restart:
    return Restart(time=NOON - timedelta(seconds=seconds_ago), phase="train", attempt=1, reason="X", counting="Counted")


@pytest.mark.parametrize(
    ("history", "reason", "seconds"),
    [
        ([], "InternalError", 0),
        ([restarted(60)], "InternalError", 2),
        ([restarted(60)] * 3, "InternalError", 8),
        ([restarted(60)] * 9, "InternalError", 60),
        ([restarted(601)] * 9, "InternalError", 0),
        ([], "SourceUnavailable", 10),
        ([restarted(60)] * 2, "SourceUnavailable", 40),
        ([restarted(60)] * 9, "SourceUnavailable", 300),
    ],
)
def test_backoff_grows_with_recent_restarts(history, reason, seconds):
    assert backoff_seconds(history, reason, POLICY, NOON) == seconds


@pytest.mark.parametrize(("count", "seconds"), [(0, 0), (1, 10), (2, 20), (3, 25), (10, 25)])
def test_backoff_is_the_jobs_to_set(count, seconds):
    policy = FailurePolicy(backoff_seconds=10, max_backoff_seconds=25)
    assert backoff_seconds([restarted(60)] * count, "InternalError", policy, NOON) == seconds
    # Restarts as old as ten of the longest waits are forgotten.
    assert backoff_seconds([restarted(251)] * count, "InternalError", policy, NOON) == 0


def test_restarts_that_do_not_count_wait_too():
    status = fail(fail(a_status(), EVICTION), EVICTION)
    assert status.not_before == NOON + timedelta(seconds=2)


def test_backoff_is_waited_for_and_told():
    status = fail(fail(a_status(), step=1), step=2)
    waiting = decide(status, a_view())
    assert waiting.actions == ()
    assert condition(waiting.status, c.RUNNING) == ("False", c.BACKING_OFF)
    assert waiting.requeue_after == 2.0
    assert waiting.status.state is State.RESTARTING
    assert decide(waiting.status, a_view(), now=NOON + timedelta(seconds=2)).actions[0].name == "pairs-train-3"


@pytest.mark.fault(41)
def test_a_wait_that_another_clock_set_is_not_waited_for():
    early = a_status(created=False, not_before=NOON + timedelta(hours=1))
    assert [action.kind for action in decide(early, a_view()).actions] == ["Job"]


def test_restarting_ends_when_all_pods_of_the_new_attempt_run():
    status = fail(a_status())
    half = decide(status, a_view(a_child(attempt=2), a_pod(0, attempt=2), a_pod(1, attempt=2, pod_phase="Pending")))
    assert half.status.state is State.RESTARTING
    whole = decide(half.status, a_view(a_child(attempt=2), a_pod(0, attempt=2), a_pod(1, attempt=2)))
    assert whole.status.state is State.TRAINING
    assert condition(whole.status, c.RESTARTING) == ("False", c.RESTARTED)


def test_policy_can_change_while_the_job_runs():
    view = a_view(a_child(), a_pod(0), ended(1, 70))
    strict = decide(a_status(), view, a_job(failurePolicy={"maxRestarts": 0}))
    assert condition(strict.status, c.FAILED) == ("True", c.MAX_RESTARTS_EXCEEDED)


def test_the_history_shows_the_last_known_step_of_a_killed_pod():
    status = a_status(progress=progress_status(a_reading(12), NOON))
    killed = decide(status, a_view(a_child(failed=True), a_pod(0), ended(1, code=137)))
    assert [(r.step, r.reason) for r in killed.status.restart_history] == [(12, "Killed")]
