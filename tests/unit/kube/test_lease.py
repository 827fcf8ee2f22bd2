"""Who may write, with a manual clock and a Lease that is stored as the API server stores it."""

import asyncio
import copy

import pytest

from dpo_operator.kube.client import ApiError
from dpo_operator.kube.lease import Lease, LeaseLostError

pytestmark = pytest.mark.unit


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Store:
    """One object with a resourceVersion as precondition. away: no answer; deaf: carries out, and the answer is lost."""

    def __init__(self):
        self.lease, self.version, self.away, self.deaf = None, 0, False, False

    async def request(self, method, path, body=None, query=None):
        if self.away:
            raise ConnectionError("refused")
        if method == "GET":
            if self.lease is None:
                raise ApiError(404, "NotFound", "", is_gone=True)
            return copy.deepcopy(self.lease)
        if method == "POST" and self.lease is not None:
            raise ApiError(409, "AlreadyExists", "")
        if method == "PUT" and body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "")
        self.version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        if self.deaf:
            raise TimeoutError
        return copy.deepcopy(self.lease)


def candidate(store, clock, name):
    return Lease(store, "system", "dpo-operator", name, 12.0, clock)


def attempt(lease):
    return asyncio.run(lease._try())


def test_only_the_holder_may_write_for_three_quarters_of_the_duration():
    store, clock = Store(), Clock()
    one, other = candidate(store, clock, "one"), candidate(store, clock, "other")
    assert one.remaining() < 0
    assert attempt(one)
    assert one.remaining() == 9
    assert not attempt(other)
    assert other.remaining() < 0
    clock.now += 8.9
    assert one.remaining() > 0
    clock.now += 0.2
    assert one.remaining() < 0


def test_a_candidate_takes_over_after_the_whole_duration_without_renewal():
    store, clock = Store(), Clock()
    one, other = candidate(store, clock, "one"), candidate(store, clock, "other")
    assert attempt(one)
    clock.now += 60
    # However old it may be: the other one has only just seen it.
    assert not attempt(other)
    clock.now += 11
    assert attempt(one)
    clock.now += 2
    assert not attempt(other)
    clock.now += 12
    assert attempt(other)
    # The first one was stopped meanwhile.
    assert one.remaining() < 0
    assert not attempt(one)
    assert one.remaining() < 0


def test_a_leader_continues_after_an_outage_if_its_lease_was_not_taken():
    store, clock = Store(), Clock()
    one = candidate(store, clock, "one")
    assert attempt(one)
    store.away = True
    clock.now += 60
    with pytest.raises(ConnectionError):
        attempt(one)
    assert one.remaining() < 0
    store.away = False
    assert attempt(one)
    assert one.remaining() == 9


def test_a_renewal_whose_response_was_lost_is_recognized():
    store, clock = Store(), Clock()
    one = candidate(store, clock, "one")
    assert attempt(one)
    store.deaf = True
    clock.now += 5
    with pytest.raises(TimeoutError):
        attempt(one)
    assert one.remaining() == 4
    store.deaf = False
    assert attempt(one)
    assert one.remaining() == 9


def test_a_released_lease_is_taken_at_once():
    store, clock = Store(), Clock()
    one, other = candidate(store, clock, "one"), candidate(store, clock, "other")
    assert attempt(one)
    assert not attempt(other)
    asyncio.run(one.release())
    assert one.remaining() < 0
    assert attempt(other)
    assert store.lease["spec"]["leaseTransitions"] == 2


def test_a_holder_ends_when_another_process_has_the_lease():
    store, clock = Store(), Clock()
    one, other = Lease(store, "s", "n", "one", 0.06, clock), Lease(store, "s", "n", "other", 0.06, clock)

    async def scenario():
        assert await one._try()
        assert not await other._try()
        clock.now += 1
        assert await other._try()
        await one.keep()

    with pytest.raises(LeaseLostError):
        asyncio.run(scenario())
