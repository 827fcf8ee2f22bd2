"""The queue of keys, on a real event loop."""

import asyncio

import pytest

from dpo_operator.kube.client import ApiError
from dpo_operator.queueing.key import Key
from dpo_operator.queueing.keys import KeyQueue

pytestmark = pytest.mark.unit

A, B = Key("default", "a"), Key("default", "b")


async def until(condition, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def run(scenario, handle, workers=4):
    async def body():
        queue = KeyQueue(handle, workers)
        try:
            await scenario(queue)
        finally:
            await queue.close()

    asyncio.run(body())


def test_key_that_waits_is_handled_once():
    seen = []

    async def handle(key):
        seen.append(key)

    async def scenario(queue):
        for _ in range(10):
            queue.add(A)
        queue.add(B)
        await until(lambda: len(seen) >= 2)
        await asyncio.sleep(0.05)

    run(scenario, handle)
    assert sorted(seen) == [A, B]


def test_a_key_has_one_worker_and_keeps_changes_that_come_meanwhile():
    running, most, count = 0, 0, 0
    gate = asyncio.Event()

    async def handle(_):
        nonlocal running, most, count
        running, count = running + 1, count + 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    async def scenario(queue):
        queue.add(A)
        await until(lambda: running == 1)
        for _ in range(5):
            queue.add(A)
        await asyncio.sleep(0.02)
        assert running == 1
        gate.set()
        await until(lambda: count == 2)
        await asyncio.sleep(0.05)

    run(scenario, handle)
    assert (most, count) == (1, 2)


def test_other_keys_go_on_while_one_is_slow():
    done = []
    gate = asyncio.Event()

    async def handle(key):
        if key == A:
            await gate.wait()
        done.append(key)

    async def scenario(queue):
        queue.add(A)
        queue.add(B)
        await until(lambda: done == [B])
        gate.set()
        await until(lambda: done == [B, A])

    run(scenario, handle, workers=2)


def test_errors_are_tried_again_with_a_growing_delay_and_end_no_worker():
    times = []

    async def handle(_):
        times.append(asyncio.get_running_loop().time())
        if len(times) < 3:
            raise RuntimeError("the API server is away")

    async def scenario(queue):
        queue.add(A)
        await until(lambda: len(times) == 3)
        await asyncio.sleep(0.05)
        assert queue.alive

    run(scenario, handle, workers=1)
    first, second, third = times
    assert 0.4 < second - first < 0.9
    assert 0.9 < third - second < 1.8


def test_handler_may_ask_for_another_look_and_an_event_comes_before_it():
    count = 0

    async def handle(_):
        nonlocal count
        count += 1
        return 0.05 if count == 1 else 30.0

    async def scenario(queue):
        queue.add(A)
        await until(lambda: count == 2)
        queue.add(A)
        await until(lambda: count == 3, seconds=1)

    run(scenario, handle)


def test_sooner_of_two_delays_wins():
    count = 0

    async def handle(_):
        nonlocal count
        count += 1

    async def scenario(queue):
        queue.add_after(A, 0.05)
        queue.add_after(A, 60)
        await until(lambda: count == 1, seconds=1)
        queue.add_after(A, 60)
        queue.add_after(A, 0.05)
        await until(lambda: count == 2, seconds=1)

    run(scenario, handle)


def test_good_key_does_not_wait_for_hopeless_ones():
    done = []

    async def handle(key):
        done.append(key)

    async def scenario(queue):
        for index in range(1000):
            queue.add(Key("default", f"bad-{index}"), slow=True)
        queue.add(A)
        assert (queue.depth("slow"), queue.depth("normal")) == (1000, 1)
        assert queue.oldest_seconds("slow") >= 0
        await until(lambda: len(done) == 1001)

    run(scenario, handle, workers=1)
    assert done.index(A) <= 1


def test_hopeless_keys_get_their_turn():
    done = []

    async def handle(key):
        done.append(key)

    async def scenario(queue):
        for index in range(100):
            queue.add(Key("default", f"good-{index}"))
        queue.add(B, slow=True)
        await until(lambda: len(done) == 101)

    run(scenario, handle, workers=1)
    assert done.index(B) == 3


def test_namespaces_take_turns():
    done = []

    async def handle(key):
        done.append(key)

    async def scenario(queue):
        for index in range(50):
            queue.add(Key("crowd", f"job-{index}"))
        queue.add(Key("quiet", "job"))
        await until(lambda: len(done) == 51)

    run(scenario, handle, workers=1)
    assert done.index(Key("quiet", "job")) == 1


def test_a_change_promotes_a_slow_key_and_a_failure_demotes_it():
    done = []
    broken = True

    async def handle(key):
        done.append(key)
        if key == B and broken:
            raise RuntimeError("refused")

    async def scenario(queue):
        nonlocal broken
        queue.add(A, slow=True)
        queue.add(A)
        assert (queue.depth("slow"), queue.depth("normal")) == (0, 1)
        queue.add(B)
        await until(lambda: len(done) == 2)
        queue.add(B)
        assert (queue.depth("slow"), queue.depth("normal")) == (1, 0)
        broken = False
        await until(lambda: len(done) == 3)

    run(scenario, handle, workers=1)


def test_busy_server_is_left_alone_for_as_long_as_it_asks():
    times = []

    async def handle(_):
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise ApiError(429, "TooManyRequests", "busy", retry_after=1.5)

    async def scenario(queue):
        queue.add(A)
        await until(lambda: len(times) == 2)

    run(scenario, handle, workers=1)
    assert times[1] - times[0] > 1.4


def test_key_that_waits_slowly_is_handled_when_it_is_due():
    order = []
    gate = asyncio.Event()
    crowd = [Key("default", f"look-again-{i}") for i in range(20)]

    async def handle(key):
        order.append(key)
        await (gate.wait() if key == B else asyncio.sleep(0.02))

    async def scenario(queue):
        queue.add(B)
        await until(lambda: order == [B])
        # Known to be due before it is put behind the others, and found due while it waits there.
        queue.add_after(A, 0.05)
        for key in (*crowd, A, Key("default", "late")):
            queue.add(key, slow=True)
        queue.add_after(Key("default", "late"), 0.06)
        gate.set()
        await until(lambda: len(order) == 23)
        await asyncio.sleep(0.1)

    run(scenario, handle, workers=1)
    assert order.index(A) < 10
    assert order.index(Key("default", "late")) < 10
    # What a pass was to do is done by the one that came first.
    assert len(order) == len(set(order)) == 23
