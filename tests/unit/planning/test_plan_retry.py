"""Decisions about a failed job whose user wants another try, and about what is left when a job ended."""

from datetime import timedelta
from typing import Any

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.planning import restarts, transitions
from dpo_operator.planning.actions import Create, Delete
from dpo_operator.planning.objects import ChildJob, ChildPod
from dpo_operator.planning.rejecting import reject_unreadable
from dpo_operator.planning.transitions import Moment, settled
from dpo_operator.planning.validate import Problems
from tests.unit.planning.build import NOON, a_child, a_job, a_pod, a_status, a_view, condition, decide, ended

AT = Moment(NOON - timedelta(minutes=5), 1)


def asked(token: str = "once", **spec: Any) -> Any:
    return a_job(metadata={"annotations": {names.ANNOTATION_RETRY: token}}, **spec)


def a_failed(phase: names.Phase = "train", reason: str = c.NO_PROGRESS, **fields: Any) -> DPOJobStatus:
    counted = {"counted_restart_times": [int(NOON.timestamp())] * 5, "restarts_without_progress": 3}
    return settled(restarts.give_up(a_status(phase, **(counted | fields)), reason, "Why.", AT).status, AT)


@pytest.mark.parametrize("phase", names.PHASES)
def test_a_failed_phase_goes_on_as_its_next_attempt(phase: names.Phase) -> None:
    decision = decide(a_failed(phase), a_view(), asked())
    status = decision.status
    assert (status.state, status.completion_time, status.last_handled_retry) == (State.PENDING, None, "once")
    assert (status.attempts.of(phase), status.active_job) == (2, None)
    assert (status.counted_restart_times, status.restarts_without_progress) == ([], 0)
    assert condition(status, c.FAILED) == ("False", "Retried")
    assert [e.reason for e in decision.events] == ["Retried"]
    (create,) = decide(status, a_view(), asked()).actions
    assert isinstance(create, Create)
    assert create.name == f"pairs-{phase}-2"


def test_a_token_is_one_retry() -> None:
    again = a_failed(last_handled_retry="once")
    assert decide(again, a_view(), asked()).status == again
    assert decide(again, a_view(), asked("twice")).status.last_handled_retry == "twice"


def test_the_deadline_counts_anew() -> None:
    status = a_failed(reason=c.DEADLINE_EXCEEDED)
    status = decide(status, a_view(), asked(activeDeadlineSeconds=600)).status
    assert decide(status, a_view(), asked(activeDeadlineSeconds=600)).status.state != State.FAILED


def test_a_retry_comes_before_the_deletion_for_age() -> None:
    late = NOON + timedelta(hours=1)
    assert decide(a_failed(), a_view(), a_job(ttlSecondsAfterFinished=60), now=late).actions != ()
    status = decide(a_failed(), a_view(), asked(ttlSecondsAfterFinished=60), now=late)
    assert status.actions == ()
    assert not [
        a
        for a in decide(status.status, a_view(), asked(ttlSecondsAfterFinished=60), now=late).actions
        if isinstance(a, Delete)
    ]


def test_pods_of_the_failed_attempt_go_first() -> None:
    status = decide(a_failed(), a_view(), asked()).status
    left = (a_child(failed=True), ended(0, 1), a_pod(1))
    assert [a.name for a in decide(status, a_view(*left), asked()).actions] == ["pairs-train-1"]


def test_a_complete_job_is_not_retried() -> None:
    complete = settled(transitions.completed(a_status("export"), AT), AT)
    decision = decide(complete, a_view(), asked())
    assert (decision.status.state, decision.status.last_handled_retry) == (State.COMPLETE, "once")
    assert [(e.type, e.reason) for e in decision.events] == [("Warning", "RetryIgnored")]
    assert decide(decision.status, a_view(), asked()).events == ()


def test_a_running_job_is_not_retried_now_nor_later() -> None:
    decision = decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1)), asked())
    assert (decision.status.attempts.train, decision.status.last_handled_retry) == (1, "once")
    assert [e.reason for e in decision.events] == ["RetryIgnored"]


def test_a_new_job_with_a_token_just_begins() -> None:
    decision = decide(DPOJobStatus(), a_view(), asked())
    assert (decision.status.last_handled_retry, decision.events, decision.requeue_after) == ("once", (), 0)
    assert decide(decision.status, a_view(), asked()).status.phase == "prepare"


def test_a_refused_spec_is_validated_again() -> None:
    bad = {"nodes": 2, "checkpoint": {"volume": {"accessMode": "ReadWriteOnce"}}}
    refused = decide(DPOJobStatus(), a_view(), a_job(**bad)).status
    assert condition(refused, c.FAILED) == ("True", c.INVALID_SPEC)
    status = decide(refused, a_view(), asked(**bad)).status
    assert status.state == State.PENDING
    assert condition(decide(status, a_view(), asked(**bad)).status, c.FAILED) == ("True", c.INVALID_SPEC)
    assert decide(status, a_view(), asked()).status.phase == "prepare"


def test_a_spec_that_can_not_be_read_says_so_again() -> None:
    problems = Problems(c.INVALID_SPEC, ("spec: wrong",))
    first = reject_unreadable(DPOJobStatus(), problems, generation=1, now=NOON).status
    again = reject_unreadable(first, problems, generation=1, now=NOON, retry="once")
    assert (again.status.last_handled_retry, [e.reason for e in again.events]) == ("once", [c.INVALID_SPEC])
    assert reject_unreadable(again.status, problems, generation=1, now=NOON, retry="once").events == ()


LEFT: tuple[ChildJob | ChildPod, ...] = (
    a_child("prepare", complete=True), ended(0, 0, phase="prepare", name="prep", uid="prep"), a_child(), a_pod(0), a_pod(1),
)  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "reason", "deleted"),
    [
        ("Running", c.NO_PROGRESS, ["pairs-train-1"]),
        ("All", c.NO_PROGRESS, ["pairs-prepare-1", "pairs-train-1"]),
        ("None", c.NO_PROGRESS, []),
        ("None", c.DEADLINE_EXCEEDED, ["pairs-train-1"]),
    ],
)
def test_what_is_left_at_the_end(policy: str, reason: str, deleted: list[str]) -> None:
    actions = decide(a_failed(reason=reason), a_view(*LEFT), a_job(cleanPodPolicy=policy)).actions
    assert [(a.name, getattr(a, "grace_seconds", 0)) for a in actions] == [(name, None) for name in deleted]
