"""What the claim gives beside what the spec asks for."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api import conditions as c
from dpo_operator.api.reports import VolumeReport
from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.planning import volumes
from dpo_operator.planning.actions import ExpandClaim
from dpo_operator.planning.transitions import Moment, completed, holds, settled
from dpo_operator.planning.transitions import failed as failed_now
from tests.unit.planning.build import (
    NOON,
    UID,
    a_child,
    a_claim,
    a_job,
    a_pod,
    a_reading,
    a_status,
    a_view,
    condition,
    decide,
)

pytestmark = pytest.mark.unit

GIB = 2**30
RUNNING = (a_child(), a_pod(0), a_pod(1))


def sized(size: str, **volume: str):
    return a_job(checkpoint={"volume": {"size": size} | volume})


def expansions(plan) -> list[tuple[str, str, str]]:
    return [(a.name, a.uid, a.size) for a in plan.actions if isinstance(a, ExpandClaim)]


def view(requested: str, capacity: str, **fields):
    claim = a_claim(requested=requested, capacity=capacity, **{k: v for k, v in fields.items() if k != "refused"})
    refused = fields.get("refused")
    return a_view(*RUNNING, claim=claim, expansion_refused=refused, progress=a_reading())


def test_a_claim_as_large_as_asked_for_is_not_mentioned():
    result = decide(a_status(), view("100Gi", "100Gi"))
    assert c.find(result.status.conditions, c.VOLUME_TOO_SMALL) is None
    assert not expansions(result)


def test_sizes_are_compared_and_not_their_spelling():
    assert not expansions(decide(a_status(), view("1Ti", "1Ti"), sized("1024Gi")))


@pytest.mark.fault(42)
def test_a_size_that_grew_is_asked_for_once_and_the_ranks_train_on():
    first = decide(a_status(), view("100Gi", "100Gi"), sized("200Gi"))
    assert expansions(first) == [("pairs-work", "uid-claim", "200Gi")]
    assert condition(first.status, c.VOLUME_TOO_SMALL) == ("True", c.EXPANSION_REQUESTED)
    assert [e.reason for e in first.events] == ["Running", c.EXPANSION_REQUESTED]
    assert first.status.state is State.TRAINING
    under_way = decide(first.status, view("200Gi", "100Gi"), sized("200Gi"))
    assert (expansions(under_way), under_way.events) == ([], ())
    done = decide(under_way.status, view("200Gi", "200Gi"), sized("200Gi"))
    assert condition(done.status, c.VOLUME_TOO_SMALL) == ("False", c.LARGE_ENOUGH)
    assert [e.reason for e in done.events] == [c.LARGE_ENOUGH]


def test_a_refused_expansion_is_told_once_and_is_no_failure():
    asked = decide(a_status(), view("100Gi", "100Gi"), sized("200Gi"))
    seen = view("100Gi", "100Gi", refused=("200Gi", "the storageclass must support resize"))
    told = decide(asked.status, seen, sized("200Gi"))
    assert condition(told.status, c.VOLUME_TOO_SMALL) == ("True", c.EXPANSION_REFUSED)
    assert [(e.type, e.reason) for e in told.events] == [("Warning", c.EXPANSION_REFUSED)]
    assert "the storageclass must support resize" in told.events[0].message
    again = decide(told.status, seen, sized("200Gi"))
    assert (expansions(again), again.events, again.status) == ([], (), told.status)
    # After a while, or for another size, it is tried again, and only another answer is news.
    later = decide(told.status, view("100Gi", "100Gi"), sized("200Gi"))
    assert (len(expansions(later)), later.events, later.status) == (1, (), told.status)
    assert expansions(decide(told.status, seen, sized("300Gi"))) == [("pairs-work", "uid-claim", "300Gi")]


def test_a_claim_that_is_not_bound_yet_is_left_alone():
    assert not expansions(decide(a_status(), view("100Gi", "", bound=False), sized("200Gi")))


def test_a_claim_that_a_user_brought_is_never_changed():
    job = sized("200Gi", claimName="mine")
    result = decide(a_status(), view("10Gi", "10Gi", name="mine", made_for=None), job)
    assert not expansions(result)
    assert condition(result.status, c.VOLUME_TOO_SMALL) == ("True", c.CLAIM_SMALLER)


def test_somebody_elses_claim_is_never_changed():
    result = decide(a_status(volume=None), view("10Gi", "10Gi", token_digest=""), sized("200Gi"))
    assert not expansions(result)


def test_the_volume_of_a_failed_job_grows_before_its_retry():
    at = Moment(NOON, 1)
    failed = settled(failed_now(a_status(), "NoProgress", "", at), at)
    assert failed.state is State.FAILED
    assert expansions(decide(failed, view("100Gi", "100Gi"), sized("200Gi")))


def created(claim, job) -> tuple[str, str]:
    """Type and message of the event about the claim, at the first Job of the job's life."""
    status = a_status("prepare", created=False, volume=None)
    result = decide(status, a_view(a_child("prepare"), claim=claim), job)
    assert result.status.volume.claim_uid == claim.uid
    return next(((e.type, e.message) for e in result.events if e.reason == c.CLAIM_REUSED), ("", ""))


def test_claim_of_an_earlier_job_that_is_named_is_mentioned():
    claim = a_claim(name="older-work", made_for_uid="older", token_digest="")
    kind, said = created(claim, a_job(checkpoint={"volume": {"claimName": "older-work"}}))
    assert kind == "Normal"
    assert "older-work of an earlier job is used again" in said
    theirs = replace(claim, made_for_uid=None)
    assert created(theirs, a_job(checkpoint={"volume": {"claimName": "older-work"}})) == ("", "")


def test_the_jobs_own_claim_is_not_mentioned():
    assert created(a_claim(made_for_uid=UID, requested="100Gi"), a_job()) == ("", "")


def with_free_space(status: DPOJobStatus, free: float, *, total: float = 100, checkpoint: float | None = None):
    size = None if checkpoint is None else int(checkpoint * GIB)
    report = VolumeReport(total=int(total * GIB), free=int(free * GIB), checkpoint=size)
    return volumes.with_free_space(status, report, Moment(NOON, 1))


def test_room_is_written_rarely():
    status, events = with_free_space(a_status(), 80)
    assert (status.volume.capacity_bytes, status.volume.free_bytes, events) == (100 * GIB, 80 * GIB, ())
    assert with_free_space(status, 76)[0] is status
    assert with_free_space(status, 74)[0].volume.free_bytes == 74 * GIB


@pytest.mark.parametrize(("free", "checkpoint", "full"), [(9, None, True), (11, 5, False), (20, 21, True)])
def test_a_volume_is_nearly_full_by_share_or_by_checkpoint(free, checkpoint, full):
    status, events = with_free_space(a_status(), free, checkpoint=checkpoint)
    assert holds(status, c.VOLUME_NEARLY_FULL) == full
    assert [e.reason for e in events] == [c.LOW_SPACE] * full


def test_a_volume_that_stays_nearly_full_says_so_once():
    status, _ = with_free_space(a_status(), 9)
    same, events = with_free_space(status, 8.9)
    assert (same, events) == (status, ())
    # Just above the bound it may fall below at once again.
    assert with_free_space(status, 10.5)[1] == ()
    relieved, events = with_free_space(status, 30)
    assert [e.reason for e in events] == [c.ENOUGH_SPACE]
    assert condition(relieved, c.VOLUME_NEARLY_FULL) == ("False", c.ENOUGH_SPACE)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60))
def test_whatever_the_readings_few_are_written(readings):
    status, writes = a_status(), 0
    moved = sum(abs(a - b) for a, b in zip([1000, *readings], readings, strict=False))
    for free in readings:
        after, _ = with_free_space(status, free / 10)
        writes += after is not status
        status = after
    assert abs(status.volume.free_bytes / GIB * 10 - readings[-1]) < 51
    # One for the first, one for each 5% moved, and one for each time the condition changes, which takes 1% at least.
    assert writes <= 1 + moved // 50 + 2 * (1 + moved // 10)


def test_only_the_current_attempts_reading_counts():
    old = a_reading(attempt=7, volume=VolumeReport(total=GIB, free=0))
    result = decide(a_status(), a_view(*RUNNING, progress=old))
    assert c.find(result.status.conditions, c.VOLUME_NEARLY_FULL) is None
    new = a_reading(volume=VolumeReport(total=GIB, free=0))
    assert holds(decide(a_status(), a_view(*RUNNING, progress=new)).status, c.VOLUME_NEARLY_FULL)


def test_the_volume_of_a_failed_job_is_polled_while_it_is_too_small():
    asked = decide(a_status(), view("100Gi", "100Gi"), sized("200Gi")).status
    failed = settled(failed_now(asked, "InvalidConfiguration", "no", Moment(NOON, 1)), Moment(NOON, 1))
    under_way = decide(failed, view("200Gi", "100Gi"), sized("200Gi"))
    assert under_way.requeue_after == 60
    refused = decide(under_way.status, view("100Gi", "100Gi", refused=("200Gi", "no")), sized("200Gi"))
    assert refused.requeue_after == 600
    brought = decide(failed, view("100Gi", "100Gi"), sized("200Gi", claimName="pairs-work"))
    assert (condition(brought.status, c.VOLUME_TOO_SMALL), brought.requeue_after) == (("True", c.CLAIM_SMALLER), None)
    grown = decide(under_way.status, a_view(claim=a_claim(requested="200Gi", capacity="200Gi")), sized("200Gi"))
    assert condition(grown.status, c.VOLUME_TOO_SMALL) == ("False", c.LARGE_ENOUGH)
    assert grown.requeue_after is None


def test_a_complete_job_needs_no_more_room():
    asked = decide(a_status("export"), a_view(a_child("export"), claim=a_claim(requested="1Gi", capacity="1Gi"))).status
    assert holds(asked, c.VOLUME_TOO_SMALL)
    complete = settled(completed(asked, Moment(NOON, 1)), Moment(NOON, 1))
    seen = a_view(claim=a_claim(requested="1Gi", capacity="1Gi"))
    result = decide(complete, seen)
    assert condition(result.status, c.VOLUME_TOO_SMALL) == ("False", c.FINISHED)
    assert (result.actions, result.events, decide(result.status, seen).status) == ((), (), result.status)
