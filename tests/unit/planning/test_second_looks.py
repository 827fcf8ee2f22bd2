"""What can't be taken back is decided only when a second look, seconds later, agrees with the first."""

import pytest

from dpo_operator.api.conditions import FAILED, VOLUME_LOST
from dpo_operator.api.status import State
from dpo_operator.planning import certainty
from dpo_operator.planning.actions import Create, Delete
from dpo_operator.planning.transitions import Moment, completed, settled
from tests.unit.planning.build import NOON, a_child, a_claim, a_job, a_pod, a_status, a_view, condition, decide

pytestmark = pytest.mark.unit

LONG = certainty.SECOND_LOOK_SECONDS
RAN = decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1))).status


def held(status, view, seconds):
    """The view, with everything that it shows shown for so long."""
    return a_view(*view.jobs, *view.pods, claim=view.claim, held=dict.fromkeys(certainty.facts(status, view), seconds))


@pytest.mark.parametrize(
    ("status", "view"),
    [
        (RAN, a_view(a_child(), a_pod(0), a_pod(1), claim=None)),
        (RAN, a_view(a_child(), a_pod(0), a_pod(1), claim=a_claim(uid="another"))),
        (RAN, a_view(a_pod(0), a_pod(1))),
        (RAN, a_view(a_child(uid="another"), a_pod(0), a_pod(1))),
        (RAN, a_view(a_child(suspended=True), a_pod(0), a_pod(1))),
        (a_status(attempt=2, created=False), a_view()),
    ],
    ids=["no claim", "another claim", "no Job", "another Job", "suspended", "nothing of the attempt before"],
)
def test_nothing_is_decided_on_one_look(status, view):
    first = decide(status, held(status, view, 0.0))
    between = decide(status, held(status, view, 1.0))
    for plan, left in ((first, LONG), (between, LONG - 1)):
        assert (plan.actions, plan.events, plan.requeue_after) == ((), (), left)
        assert (plan.status.state, plan.status.attempts) == (status.state, status.attempts)
        assert plan.status.conditions == status.conditions
    second = decide(status, held(status, view, LONG))
    assert second.status.attempts != status.attempts or second.status.state is State.FAILED or second.actions


def test_second_looks_decide_as_one_did():
    view = a_view(a_child(), a_pod(0), a_pod(1), claim=None)
    assert condition(decide(RAN, held(RAN, view, LONG)).status, FAILED) == ("True", VOLUME_LOST)
    lost = decide(RAN, held(RAN, a_view(), LONG)).status
    assert lost.restart_history[-1].reason == "JobDeleted"
    before = a_status(attempt=2, created=False)
    (create,) = decide(before, held(before, a_view(), LONG)).actions
    assert isinstance(create, Create)


def test_first_attempt_waits_for_no_second_look():
    status = a_status(created=False)
    assert [a.kind for a in decide(status, held(status, a_view(), 0.0)).actions] == ["Job"]


def test_unfinished_job_of_a_complete_one_keeps_its_logs():
    """One list without its pods would otherwise delete them."""
    status = settled(completed(a_status("export"), Moment(NOON, 1)), Moment(NOON, 1))
    assert status.state is State.COMPLETE
    view, job = a_view(a_child("export")), a_job(cleanPodPolicy="Running")
    first = decide(status, held(status, view, 0.0), job)
    assert (first.actions, first.requeue_after) == ((), LONG)
    assert [type(a) for a in decide(status, held(status, view, LONG), job).actions] == [Delete]
