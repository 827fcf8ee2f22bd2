"""Gangs: when they are placed, when they give their nodes back, and what counts for nothing."""

from datetime import timedelta

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api.status import ProgressStatus
from dpo_operator.api.statusparts.gang import PlacementWait
from dpo_operator.planning import gangs
from dpo_operator.planning.actions import Create, Delete, SuspendJob
from dpo_operator.planning.gangs import TurnState
from dpo_operator.planning.transitions import Moment, mark, running, suspended_externally
from tests.unit.planning.build import NOON, a_child, a_job, a_pod, a_status, a_view, condition, decide, ended

pytestmark = pytest.mark.unit

AT = Moment(NOON, 1)
PENDING = {"pod_phase": "Pending", "node": "", "ready": False}
UNSCHEDULED = PENDING | {"unscheduled": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."}


def held(**fields):
    return a_child(suspended=True, resource_version="7", **fields)


def suspends(plan):
    return [a.value for a in plan.actions if isinstance(a, SuspendJob)]


def test_a_gang_is_made_suspended_and_a_single_pod_is_not():
    for nodes, expected in ((2, True), (1, False)):
        plan = decide(a_status(created=False), a_view(), a_job(nodes=nodes))
        (create,) = (a for a in plan.actions if isinstance(a, Create))
        assert create.manifest["spec"]["suspend"] is expected


def test_its_turn_resumes_the_job_that_was_seen():
    plan = decide(a_status(), a_view(held()))
    (action,) = plan.actions
    assert (action.name, action.uid, action.resource_version, action.value) == (
        "pairs-train-1",
        "uid-pairs-train-1",
        "7",
        False,
    )
    assert plan.status.placement_wait == PlacementWait(waiting_since=NOON)


def test_out_of_turn_it_waits_and_says_so():
    plan = decide(a_status(), a_view(held(), may_place=False, others_waiting=True))
    assert plan.actions == ()
    assert condition(plan.status, c.RUNNING) == ("False", c.QUEUED)
    assert plan.requeue_after == gangs.WAIT_SECONDS
    later = decide(plan.status, a_view(held(), may_place=False), now=NOON + timedelta(minutes=5))
    assert later.status.placement_wait.waiting_since == NOON


@pytest.mark.parametrize(
    ("others", "seconds", "expected"),
    [(False, 299, []), (False, 300, [True]), (True, 59, []), (True, 60, [True])],
)
def test_a_partial_gang_gives_its_nodes_back(others, seconds, expected):
    view = a_view(a_child(), a_pod(0), a_pod(1, **UNSCHEDULED), others_waiting=others, placing_seconds=seconds)
    plan = decide(a_status(), view)
    assert suspends(plan) == expected
    if not expected:
        assert plan.requeue_after == (60 if others else 300) - seconds
        return
    assert condition(plan.status, c.RUNNING) == ("False", c.GANG_TIMED_OUT)
    assert "1 of 2 pods had a node" in plan.status.message
    assert "2 Insufficient nvidia.com/gpu" in plan.status.message
    assert [event.reason for event in plan.events] == [c.GANG_TIMED_OUT]
    assert (plan.status.attempts.train, plan.status.restarts, plan.status.placement_wait.timeouts) == (1, 0, 1)
    assert NOON < plan.status.placement_wait.not_before <= NOON + timedelta(seconds=10)


def test_the_time_out_is_the_jobs_own():
    job = a_job(failurePolicy={"gangTimeoutSeconds": 10})
    view = a_view(a_child(), a_pod(0), a_pod(1, **UNSCHEDULED), placing_seconds=10)
    assert suspends(decide(a_status(), view, job)) == [True]


def test_a_whole_gang_has_all_the_time_it_wants():
    """Its image may be pulled for an hour."""
    waiting = {"pod_phase": "Pending", "ready": False}
    view = a_view(a_child(), a_pod(0, **waiting), a_pod(1, **waiting), placing_seconds=9999)
    plan = decide(a_status(placement_wait=PlacementWait(waiting_since=NOON)), view)
    assert plan.actions == ()
    assert plan.status.placement_wait is None
    assert gangs.turn_state(a_job(), plan.status, view, NOON) is TurnState.NONE


def test_missing_pods_count_as_pods_without_a_node():
    plan = decide(a_status(), a_view(a_child(), a_pod(0), placing_seconds=300))
    assert suspends(plan) == [True]
    assert "1 of 2 pods exist" in plan.status.message


def test_a_single_pod_waits_as_long_as_it_takes():
    view = a_view(a_child(), a_pod(0, **UNSCHEDULED), placing_seconds=9999)
    plan = decide(a_status(), view, a_job(nodes=1))
    assert plan.actions == ()
    assert condition(plan.status, c.RUNNING) == ("False", c.UNSCHEDULABLE)


def test_pods_that_end_because_of_the_suspension_count_for_nothing():
    going = a_pod(0, deleting=True)
    plan = decide(a_status(), a_view(held(), going, ended(1, 143, deleting=True)))
    assert (plan.actions, plan.status.attempts.train, plan.status.restarts) == ((), 1, 0)
    plan = decide(a_status(), a_view(held(), ended(0, 143, deleting=True), ended(1, 75, deleting=True)))
    assert suspends(plan) == [False]


def test_a_job_that_failed_before_it_was_suspended_has_failed():
    plan = decide(a_status(), a_view(held(failed=True), ended(0, 78), ended(1, 143, deleting=True)))
    assert plan.status.is_final


def test_a_pod_on_a_lost_node_is_removed_before_the_next_turn():
    lost = a_pod(0, deleting=True, deleting_seconds=500, ready=False)
    plan = decide(a_status(), a_view(held(), lost))
    assert plan.actions == (Delete("Pod", lost.name, lost.uid, 0),)


def test_a_time_out_is_waited_for_and_then_the_turn_asked_for():
    placement = PlacementWait(waiting_since=NOON, timeouts=1, not_before=NOON + timedelta(seconds=8))
    status = a_status(placement_wait=placement)
    assert gangs.turn_state(a_job(), status, a_view(held()), NOON) is TurnState.NONE
    plan = decide(status, a_view(held()))
    assert (plan.actions, plan.requeue_after) == ((), 8)
    later = NOON + timedelta(seconds=8)
    assert gangs.turn_state(a_job(), status, a_view(held()), later) is TurnState.WAITING
    assert suspends(decide(status, a_view(held()), now=later)) == [False]


@pytest.mark.fault(24)
def test_a_gang_that_may_not_begin_says_why_and_keeps_nobody_waiting():
    denied = 'The API server refused to patch Job pairs-train-1: admission webhook "x" denied the request: no'
    asked = decide(a_status(), a_view(held()))
    assert suspends(asked) == [False]
    refused = decide(asked.status, a_view(held(), refused=denied))
    assert refused.actions == ()
    assert condition(refused.status, c.RUNNING) == ("False", c.ADMISSION_DENIED)
    assert "no" in refused.status.message
    assert 0 < refused.requeue_after <= 10
    assert gangs.turn_state(a_job(), refused.status, a_view(held(), refused=denied), NOON) is TurnState.NONE
    # After its wait it tries once, and is refused for longer.
    later = NOON + timedelta(seconds=10)
    again = decide(refused.status, a_view(held(), refused=denied), now=later)
    assert suspends(again) == [False]
    twice = decide(again.status, a_view(held(), refused=denied), now=later)
    assert twice.actions == ()
    assert twice.status.placement_wait.timeouts == 2


@pytest.mark.parametrize("queue", [None, {"kind": "Kueue", "name": "q"}])
def test_time_in_a_queue_is_no_time_of_the_job(queue):
    job = a_job(activeDeadlineSeconds=3600, **({"queue": queue} if queue else {}))
    begun = a_status().active_since
    queued = decide(a_status(), a_view(held(), may_place=False), job).status
    assert (queued.active_since, queued.active_seconds_before) == (None, (NOON - begun).total_seconds())
    later = NOON + timedelta(hours=5)
    still = decide(queued, a_view(held(), may_place=False), job, now=later).status
    assert not still.is_final
    goes_on = decide(still, a_view(a_child(), a_pod(0), a_pod(1)), job, now=later).status
    assert (goes_on.active_since, goes_on.active_seconds_before) == (later, queued.active_seconds_before)
    end = later + timedelta(seconds=3600 - queued.active_seconds_before)
    assert decide(goes_on, a_view(a_child(), a_pod(0), a_pod(1)), job, now=end).status.is_final


@pytest.mark.fault(41)
def test_a_wait_that_another_clock_set_is_not_waited_for():
    placement = PlacementWait(waiting_since=NOON, timeouts=1, not_before=NOON + timedelta(hours=1))
    status = a_status(placement_wait=placement)
    assert gangs.turn_state(a_job(), status, a_view(held()), NOON) is TurnState.WAITING
    assert suspends(decide(status, a_view(held()))) == [False]


def test_somebody_suspends_a_gang_that_ran():
    """Kueue does that when it preempts. What it saved is known by its attempt, so the next turn is another one."""
    plan = decide(running(a_status(), AT), a_view(held(), a_pod(0, deleting=True), a_pod(1, deleting=True)))
    assert (plan.status.attempts.train, plan.status.restarts, plan.status.restart_history) == (2, 0, [])
    assert condition(plan.status, c.RUNNING) == ("False", c.QUEUED)
    assert plan.actions == ()
    assert plan.status.active_job is None
    cleaning = decide(plan.status, a_view(held(), a_pod(0, deleting=True)))
    assert [action.name for action in cleaning.actions] == ["pairs-train-1"]
    again = decide(plan.status, a_view())
    assert [action.name for action in again.actions] == ["pairs-train-2"]


def test_a_gang_that_ran_and_lost_a_pod_restarts_instead_of_waiting():
    status = running(a_status(), AT)
    view = a_view(a_child(), a_pod(0), a_pod(1, **UNSCHEDULED), placing_seconds=300)
    plan = decide(status, view)
    assert suspends(plan) == []
    assert (plan.status.attempts.train, plan.status.restarts, plan.status.counted_restarts) == (2, 1, 0)


@pytest.mark.parametrize("kind", ["prepare", "export"])
def test_other_phases_that_somebody_suspends_wait_for_them(kind):
    plan = decide(a_status(kind), a_view(a_child(kind, suspended=True)))
    assert plan.actions == ()
    assert condition(plan.status, c.RUNNING) == ("False", c.QUEUED)


def test_a_queue_decides_for_itself():
    job = a_job(queue={"kind": "Kueue", "name": "team"})
    plan = decide(a_status(), a_view(held()), job)
    assert plan.actions == ()
    assert condition(plan.status, c.RUNNING) == ("False", c.QUEUED)
    assert "Kueue admits it from queue team" in plan.status.message
    assert gangs.turn_state(job, plan.status, a_view(held()), NOON) is TurnState.NONE
    view = a_view(a_child(), a_pod(0), a_pod(1, **UNSCHEDULED), placing_seconds=9999)
    assert decide(a_status(), view, job).actions == ()


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (a_view(), TurnState.NONE),
        (a_view(held()), TurnState.WAITING),
        (a_view(held(), a_pod(0, deleting=True)), TurnState.PLACING),
        (a_view(held(), a_pod(0, **PENDING)), TurnState.WAITING),
        (a_view(a_child()), TurnState.PLACING),
        (a_view(a_child(), a_pod(0), a_pod(1, **PENDING)), TurnState.PLACING),
        (a_view(a_child(), a_pod(0), a_pod(1)), TurnState.NONE),
        (a_view(a_child(failed=True), a_pod(0)), TurnState.NONE),
        (a_view(a_child(deleting=True), a_pod(0)), TurnState.NONE),
    ],
    ids=["no job", "held", "giving back", "unplaced", "no pods", "half", "whole", "failed", "going"],
)
def test_how_a_job_stands_is_seen(view, expected):
    assert gangs.turn_state(a_job(), a_status(), view, NOON) is expected
    for job in (a_job(nodes=1), a_job(managedBy="example.org/other")):
        assert gangs.turn_state(job, a_status(), view, NOON) is TurnState.NONE


def test_a_gang_that_restarts_asks_before_its_next_job_is_there():
    status = decide(a_status(), a_view(a_child(), ended(0, 137), a_pod(1))).status
    assert status.attempts.train == 2
    going = a_view(a_child(failed=True), a_pod(1, deleting=True))
    assert gangs.turn_state(a_job(), status, going, NOON) is TurnState.PLACING
    assert gangs.turn_state(a_job(), status, a_view(), NOON) is TurnState.WAITING
    assert gangs.priority(status, NOON) < gangs.priority(a_status(), NOON - timedelta(days=1))
    # When a quota is in the way, others need not wait for it.
    assert gangs.turn_state(a_job(), status, a_view(refused="exceeded quota"), NOON) is TurnState.NONE


def test_gangs_that_had_a_turn_in_vain_come_last_and_by_the_time_of_asking():
    def priority(*, restarting=False, ran=True, since=0, timeouts=0, again=None):
        placement = PlacementWait(
            waiting_since=NOON + timedelta(minutes=since),
            timeouts=timeouts,
            had_nodes=restarting and ran,
            not_before=None if again is None else NOON + timedelta(minutes=again),
        )
        status = a_status(placement_wait=placement)
        if restarting:
            status = mark(status, AT, c.RESTARTING, True, "Killed")
        return gangs.priority(status, NOON)

    queue = [
        priority(restarting=True, since=9),
        priority(since=3),
        priority(since=5),
        # Edited before it ever ran: it gives no nodes back.
        priority(restarting=True, ran=False, since=6),
        priority(since=0, timeouts=7, again=10),
        priority(restarting=True, since=1, timeouts=1, again=11),
        priority(since=2, timeouts=1, again=12),
    ]
    assert sorted(queue, key=lambda each: each) == queue


@pytest.mark.parametrize("kind", ["Kueue", "Volcano"])
def test_half_a_gang_that_a_queue_let_begin_gives_its_nodes_back(kind):
    """A queue may count what the nodes have together; that does not make room for a pod on any of them."""
    job = a_job(queue={"kind": kind, "name": "team"}, failurePolicy={"gangTimeoutSeconds": 60})
    half = (a_child(), a_pod(0, pod_phase="Pending"), a_pod(1, **UNSCHEDULED))
    waiting = decide(a_status(), a_view(*half, placing_seconds=59.0), job)
    assert waiting.status.attempts.train == 1
    assert waiting.requeue_after == 1.0
    given_back = decide(a_status(), a_view(*half, placing_seconds=60.0), job).status
    assert (given_back.attempts.train, given_back.counted_restarts) == (2, 0)
    assert condition(given_back, c.RESTARTING) == ("True", c.GANG_TIMED_OUT)
    assert "1 of 2 pods had a node after 60 s" in given_back.message
    # How long it waited before is nobody's business.
    assert decide(a_status(), a_view(*half, waiting_seconds=9999.0), job).status.attempts.train == 1
    assert gangs.is_partly_placed(job, a_status(), a_view(*half))
    assert not gangs.is_partly_placed(a_job(), a_status(), a_view(*half))
    # Pods without any node hold none, and one that has all its nodes may pull its image for hours.
    for pods in ((a_pod(0, **UNSCHEDULED), a_pod(1, **UNSCHEDULED)), [a_pod(i, pod_phase="Pending") for i in (0, 1)]):
        assert decide(a_status(), a_view(a_child(), *pods, placing_seconds=9999.0), job).status.attempts.train == 1


def test_a_job_made_just_before_the_suspension_is_stopped_too():
    """Its creation was not seen when spec.suspend was."""
    job = a_job(suspend=True)
    suspended = decide(a_status(created=False), a_view(), job).status
    assert suspended.attempts.train == 1
    noticed = decide(suspended, a_view(a_child(), a_pod(0)), job)
    assert (noticed.status.attempts.train, noticed.status.state) == (2, "Suspended")
    assert [action.name for action in decide(noticed.status, a_view(a_child()), job).actions] == ["pairs-train-1"]


def test_waits_grow_differ_and_end():
    first = [gangs.backoff_seconds(f"uid-{i}", 1) for i in range(50)]
    assert min(first) >= 5
    assert max(first) <= 10
    assert len(set(first)) > 25
    assert [gangs.backoff_seconds("uid", n) <= gangs.LAST_BACKOFF_SECONDS for n in (5, 50, 5000)] == [True] * 3
    assert gangs.backoff_seconds("uid", 50) >= gangs.LAST_BACKOFF_SECONDS / 2


def test_set_aside_keeps_all_counters():
    status = suspended_externally(running(a_status(restarts=3), AT), AT, "m")
    assert (status.restarts, status.counted_restarts, status.attempts.train) == (3, 0, 2)


def test_what_prepare_reported_does_not_pass_for_training():
    """Both are attempt 1: a gang that waits for its first turn has not run."""
    preparing = a_status("prepare", progress=ProgressStatus(attempt=1, activity="tokenizing"))
    training = decide(preparing, a_view(a_child("prepare", complete=True))).status
    waiting = decide(training, a_view(a_child("prepare", complete=True), held(), may_place=False))
    assert waiting.status.attempts.train == 1
    assert condition(waiting.status, c.RUNNING)[1] == c.QUEUED
