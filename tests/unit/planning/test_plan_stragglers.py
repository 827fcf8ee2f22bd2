"""A rank that is much slower than the others: told once, shown, and left alone."""

from typing import Any

import pytest

from dpo_operator.api.reports import SlowestRank
from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.planning.actions import Plan
from tests.unit.planning.build import a_child, a_job, a_pod, a_reading, a_status, a_view, decide, ended

pytestmark = [pytest.mark.unit, pytest.mark.fault(36)]


def look(status: DPOJobStatus, rank: int | None, ratio: float = 1.0, *, attempt: int = 1, **spec: Any) -> Plan:
    """A decision on a reading with this slowest rank."""
    reading = a_reading(attempt=attempt, slowest=None if rank is None else SlowestRank(rank=rank, ratio=ratio))
    pods = (a_pod(0, attempt=attempt), a_pod(1, attempt=attempt))
    return decide(status, a_view(a_child(attempt=attempt), *pods, progress=reading), a_job(**spec))


@pytest.fixture
def running() -> DPOJobStatus:
    return look(a_status(), None).status


def test_it_is_named_once_with_its_pod_and_node(running: DPOJobStatus):
    first = look(running, 1, 3.14)
    (event,) = first.events
    assert (event.type, event.reason) == ("Warning", "Straggler")
    assert "Rank 1 (pod pairs-train-1-1 on node gpu-1) takes 3.1 times as long" in event.message
    shown = first.status.straggler
    assert (shown.attempt, shown.rank, shown.ratio, shown.pod, shown.node) == (1, 1, "3.1", "pairs-train-1-1", "gpu-1")
    assert (first.actions, first.status.state, first.status.restarts) == ((), State.TRAINING, 0)
    again = look(first.status, 1, 3.3)
    assert (again.events, again.status.straggler) == ((), shown)


def test_below_the_threshold_nothing_is_said(running: DPOJobStatus):
    quiet = look(running, 0, 1.49)
    assert (quiet.events, quiet.status.straggler) == ((), None)


def test_a_ratio_around_the_threshold_is_one_episode(running: DPOJobStatus):
    status, events = running, []
    for ratio in (1.6, 1.4, 1.6, 1.3, 1.5) * 4:
        step = look(status, 1, ratio)
        status = step.status
        events += step.events
    assert len(events) == 1
    # Well below it the episode is over, and a later one is told anew.
    over = look(status, 1, 1.1)
    assert (over.events, over.status.straggler) == ((), None)
    assert len(look(over.status, 1, 1.6).events) == 1


def test_a_large_change_is_shown_without_another_event(running: DPOJobStatus):
    worse = look(look(running, 1, 2.0).status, 1, 9.0)
    assert (worse.events, worse.status.straggler.ratio) == ((), "9.0")


def test_another_rank_is_another_episode(running: DPOJobStatus):
    other = look(look(running, 1, 2.0).status, 0, 2.0)
    assert other.status.straggler.rank == 0
    assert len(other.events) == 1


def test_ranks_share_pods(running: DPOJobStatus):
    slow = look(running, 9, 2.0, gpusPerNode=8)
    assert slow.status.straggler.pod == "pairs-train-1-1"
    # What a pod says is a tenant's word: there is no such rank.
    assert look(running, 16, 2.0, gpusPerNode=8).status.straggler is None


def test_it_goes_with_its_attempt(running: DPOJobStatus):
    slow = look(running, 1, 2.0).status
    failed = decide(slow, a_view(a_child(), a_pod(0), ended(1, 70))).status
    assert failed.straggler is None
    assert look(failed, None, attempt=2).status.straggler is None
    done = decide(slow, a_view(a_child(), ended(0, 0), ended(1, 0))).status
    assert (done.phase, done.straggler) == ("export", None)
