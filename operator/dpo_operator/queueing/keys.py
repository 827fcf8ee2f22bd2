"""Work queue of job keys: deduplicated, one worker per key, retries with exponential back-off.

The slow lane keeps jobs that failed, will be rejected, have ended, or of which no change is known, from delaying the others.
Within a lane, namespaces are served round-robin.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from dpo_operator.queueing.key import Key, LaneName

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 60.0
# With keys in both lanes, every SLOW_TURN-th key comes from the slow one.
SLOW_TURN = 4


class Lane:
    """First in, first out within a namespace, round-robin over namespaces; with the time at which each key was added."""

    def __init__(self) -> None:
        # The keys of each are ordered and may leave in any order, at the same cost however many there are.
        self._namespaces: OrderedDict[str, OrderedDict[Key, None]] = OrderedDict()
        self._since: dict[Key, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, key: Key) -> bool:
        return key in self._since

    def put(self, key: Key, since: float) -> None:
        """Append a key that is not in the lane."""
        self._namespaces.setdefault(key.namespace, OrderedDict())[key] = None
        self._since[key] = since

    def take(self) -> Key:
        """The next namespace's oldest key."""
        namespace, keys = next(iter(self._namespaces.items()))
        key, _ = keys.popitem(last=False)
        del self._since[key]
        if keys:
            self._namespaces.move_to_end(namespace)
        else:
            del self._namespaces[namespace]
        return key

    def remove(self, key: Key) -> float:
        """Remove a key. Returns the time at which it was added."""
        keys = self._namespaces[key.namespace]
        del keys[key]
        if not keys:
            del self._namespaces[key.namespace]
        return self._since.pop(key)

    def times(self) -> list[float]:
        """Time at which each key was added. A copy, because the metrics are served by another thread."""
        return list(self._since.values())


class KeyQueue:
    """Runs a handler for keys.

    A key that is added while it waits is not added again; a key that is added while it is handled is handled once more
    afterwards. The handler returns the seconds until the key is due again, or None. Keys whose last handling failed, and
    keys that are added as slow, wait in the slow lane.
    """

    def __init__(self, handle: Callable[[Key], Awaitable[float | None]], workers: int) -> None:
        self._handle = handle
        self._lanes: dict[LaneName, Lane] = {"normal": Lane(), "slow": Lane()}
        self._turn = 0
        self._something = asyncio.Semaphore(0)
        self._running: set[Key] = set()
        self._again: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._errors: dict[Key, int] = {}
        self._tasks = [asyncio.create_task(self._work(), name=f"reconcile-{i}") for i in range(workers)]

    @property
    def alive(self) -> bool:
        """Whether all worker tasks are alive."""
        return not any(task.done() for task in self._tasks)

    def depth(self, lane: LaneName) -> int:
        """Number of keys that wait in a lane."""
        return len(self._lanes[lane])

    def oldest_seconds(self, lane: LaneName) -> float:
        """Age of the oldest key, seconds; 0 for an empty lane."""
        times = self._lanes[lane].times()
        return time.monotonic() - min(times) if times else 0.0

    def add(self, key: Key, *, slow: bool = False) -> None:
        """Handle a key as soon as a worker is free. slow: use the slow lane, until the key is due anyway."""
        slow = slow or key in self._errors
        if not slow:
            self._cancel_timer(key)
        if key in self._running:
            self._again.add(key)
            return
        if key in self._lanes["normal"] or (slow and key in self._lanes["slow"]):
            return
        if key in self._lanes["slow"]:
            # Promote a key from the slow lane.
            self._lanes["normal"].put(key, self._lanes["slow"].remove(key))
            return
        self._lanes["slow" if slow else "normal"].put(key, time.monotonic())
        self._something.release()

    def add_after(self, key: Key, seconds: float) -> None:
        """Handle a key later, unless it is due sooner anyway. A key in the slow lane moves to the other one then."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if key in self._lanes["normal"] or (timer is not None and timer.when() <= loop.time() + seconds):
            return
        self._cancel_timer(key)
        self._timers[key] = loop.call_later(seconds, self._due, key)

    def _due(self, key: Key) -> None:
        del self._timers[key]
        self.add(key)

    def _cancel_timer(self, key: Key) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()

    async def close(self) -> None:
        """Cancel the workers. A reconcile may be interrupted at any await."""
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _next(self) -> Key:
        normal, slow = self._lanes["normal"], self._lanes["slow"]
        if normal and slow:
            self._turn = (self._turn + 1) % SLOW_TURN
            return slow.take() if self._turn == 0 else normal.take()
        return (normal or slow).take()

    async def _work(self) -> None:
        while True:
            await self._something.acquire()
            key = self._next()
            # What it was to do is done now.
            self._cancel_timer(key)
            self._running.add(key)
            try:
                delay = await self._handle(key)
                self._errors.pop(key, None)
            except Exception as error:
                count = self._errors[key] = self._errors.get(key, 0) + 1
                delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(count - 1, 10))
                # Honour Retry-After.
                delay = max(delay, getattr(error, "retry_after", 0.0))
                logger.warning("%s: %s; retrying in %.1f s", key, str(error) or type(error).__name__, delay)
                logger.debug("%s", key, exc_info=True)
            finally:
                self._running.discard(key)
            if key in self._again:
                self._again.discard(key)
                delay = 0 if key not in self._errors else delay
            if delay is not None:
                self.add(key) if delay <= 0 else self.add_after(key, delay)
