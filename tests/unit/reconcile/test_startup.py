"""When Kubernetes' events are read, and when a job's own are given."""

import asyncio
from typing import Any

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.planning.announcing import REPEAT_SECONDS
from dpo_operator.planning.transitions import Moment, running
from dpo_operator.planning.transitions import waiting as waits
from dpo_operator.queueing.stopwatch import Stopwatch
from dpo_operator.reconcile.startup import PODS_AT_ONCE, StartupTracker
from tests.unit.planning.build import NOON, a_child, a_job, a_pod, a_status, a_view

pytestmark = pytest.mark.unit

AT = Moment(NOON, 1)


class Events:
    """The API server's events: it answers, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def list(self, kind: str, namespace: str, label_selector: str = "", field_selector: str = "") -> Any:
        assert (kind, namespace, label_selector) == ("Event", "default", "")
        self.asked.append(field_selector)
        uid = field_selector.removeprefix("involvedObject.uid=")
        versions = ("10", "9")
        return [
            {"metadata": {"resourceVersion": v}, "involvedObject": {"uid": uid}, "reason": f"R{v}", "message": "m"}
            for v in versions
        ]


class Watch:
    """A clock that the test moves, and a job's memory that goes by it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.startup = StartupTracker(clock=lambda: self.now, waiting=Stopwatch(clock=lambda: self.now))
        self.events = Events()

    def look(self, view: Any, *, job: Any = None, status: Any = None) -> Any:
        return asyncio.run(
            self.startup.observe(self.events, job or a_job(), status or a_status(), view)  # type: ignore[arg-type]
        )


HALF = a_view(a_child(), a_pod(0), a_pod(1, pod_phase="Pending"))


def test_events_are_read_after_a_while_and_now_and_then():
    watch = Watch()
    seen = watch.look(HALF)
    assert (seen.waiting_seconds, seen.notices, watch.events.asked) == (0.0, (), [])
    watch.now += 5
    seen = watch.look(HALF)
    assert watch.events.asked == [f"involvedObject.uid={a_pod(1).uid}"]
    # Oldest first, in numbers.
    assert [notice.reason for notice in seen.notices] == ["R9", "R10"]
    watch.now += 9
    assert watch.look(HALF).notices == seen.notices
    assert len(watch.events.asked) == 1
    watch.now += 1
    watch.look(HALF)
    assert len(watch.events.asked) == 2


@pytest.mark.parametrize(
    "view",
    [
        a_view(a_child(), a_pod(0), a_pod(1)),
        a_view(a_child(suspended=True)),
        a_view(a_child(), a_pod(0, pod_phase="Pending", node=""), a_pod(1, pod_phase="Pending", node="")),
        a_view(),
    ],
    ids=["all run", "waits for its turn", "without nodes", "no Job yet"],
)
def test_events_are_not_read_where_they_tell_nothing(view):
    watch = Watch()
    for _ in range(3):
        watch.look(view)
        watch.now += 60
    assert watch.events.asked == []


def test_a_gang_costs_a_few_requests():
    watch = Watch()
    pods = [a_pod(i, pod_phase="Pending") for i in range(20)]
    job = a_job(nodes=32, training={"globalBatchSize": 32})
    watch.look(a_view(a_child(), *pods), job=job)
    watch.now += 5
    watch.look(a_view(a_child(), *pods), job=job)
    assert len(watch.events.asked) == 1 + PODS_AT_ONCE
    assert watch.events.asked[0] == f"involvedObject.uid={a_child().uid}"


def test_refused_pods_are_tried_again_now_and_then():
    watch = Watch()
    tried = []
    for _ in range(14):
        tried.append(watch.look(HALF).may_try_again)
        watch.now += 5
    assert [i * 5 for i, again in enumerate(tried) if again] == [20, 40, 60]


def test_another_attempt_waits_anew():
    watch = Watch()
    watch.look(HALF)
    watch.now += 50
    second = a_view(a_child(attempt=2), a_pod(0, attempt=2))
    assert watch.look(second, status=a_status(attempt=2)).waiting_seconds == 0.0


def test_one_event_for_each_change_of_the_reason():
    watch, before = Watch(), a_status()
    quota = waits(before, AT, c.QUOTA_EXCEEDED, "exceeded quota")
    image = waits(before, AT, c.IMAGE_PULL_FAILED, "no such tag")

    def said(status):
        return [event.reason for event in watch.startup.announce(before, status, HALF)]

    assert said(quota) == [c.QUOTA_EXCEEDED]
    assert said(waits(before, AT, c.QUOTA_EXCEEDED, "in other words")) == []
    assert said(image) == [c.IMAGE_PULL_FAILED]
    # One that comes and goes is not told each time.
    assert said(quota) == said(image) == []
    watch.now += REPEAT_SECONDS
    assert said(quota) == [c.QUOTA_EXCEEDED]
    watch.now += REPEAT_SECONDS
    assert said(quota) == []
    assert said(running(quota, AT)) == []
    assert said(quota) == [c.QUOTA_EXCEEDED]


def test_another_attempt_says_again_what_is_in_its_way():
    watch, prepare, train = Watch(), a_status("prepare"), a_status()
    for status in (prepare, train):
        quota = waits(status, AT, c.QUOTA_EXCEEDED, "exceeded quota")
        assert [e.reason for e in watch.startup.announce(status, quota, HALF)] == [c.QUOTA_EXCEEDED]
        assert watch.startup.announce(status, quota, HALF) == ()
        watch.now += 1


def test_an_operator_that_starts_repeats_nothing():
    quota = waits(a_status(), AT, c.QUOTA_EXCEEDED, "exceeded quota")
    assert Watch().startup.announce(quota, quota, HALF) == ()
    assert Watch().startup.announce(a_status(), quota, HALF) != ()
