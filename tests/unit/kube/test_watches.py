"""When a watch counts as dead or stuck, and when not."""

import pytest
from yarl import URL

from dpo_operator.kube.watches import Stream, Watches

pytestmark = pytest.mark.unit

PODS, JOBS = Stream("pods", "a"), Stream("dpojobs", "a")
POD_WATCH = URL("https://server/api/v1/namespaces/a/pods?watch=true")


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watches(clock):
    return Watches([PODS, JOBS], 140, 30, clock)


def test_stream_of_a_path():
    assert Stream.of("/apis/dpo-operator.dev/v1alpha1/namespaces/a/dpojobs") == JOBS
    assert Stream.of("/api/v1/pods") == Stream("pods", None)
    assert str(PODS) == "pods in a"


def test_a_watch_is_stuck_when_lists_show_a_version_that_it_lacks(watches, clock):
    watches.delivered(PODS, "5")
    watches.on_list(PODS, ["4", "5"])
    clock.now += 100
    assert watches.unhealthy_reason() == ""
    watches.on_list(PODS, ["7"])
    clock.now += 29
    watches.on_list(PODS, ["8"])
    assert watches.unhealthy_reason() == ""
    clock.now += 2
    watches.on_list(PODS, ["9"])
    assert watches.unhealthy_reason() == "the watch of pods in a has not delivered version 7 in 31 s, which reads show"
    # Not the newest, but what was missing first.
    watches.delivered(PODS, "7")
    assert watches.unhealthy_reason() == ""


def test_an_object_deleted_without_an_event_is_no_sign_of_a_stuck_watch(watches, clock):
    watches.on_list(PODS, ["7"])
    clock.now += 1000
    watches.on_activity(POD_WATCH, 200)
    watches.on_list(PODS, [])
    assert watches.unhealthy_reason() == ""
    # The next object is read a moment before its event comes.
    watches.on_list(PODS, ["9"])
    assert watches.unhealthy_reason() == ""


def test_silence_counts_only_while_the_server_answers(watches, clock):
    clock.now += 200
    assert watches.unhealthy_reason() == ""
    watches.on_list(JOBS, [])
    assert watches.unhealthy_reason().startswith("the watch of dpojobs in a has been silent for 200 s")
    watches.on_activity(URL("https://server/apis/dpo-operator.dev/v1alpha1/namespaces/a/dpojobs"), 200)
    assert watches.unhealthy_reason() == ""
    assert watches.ages() == {"pods": 200.0, "dpojobs": 0.0}


def test_a_refused_namespace_is_not_unhealthy(watches, clock):
    watches.on_activity(POD_WATCH, 403)
    clock.now += 500
    for _ in range(3):
        watches.on_list(PODS, ["7"])
        clock.now += 20
    assert watches.unhealthy_reason() == ""
    watches.on_activity(POD_WATCH, 200)
    assert "version 7" in watches.unhealthy_reason()
