"""A queue of job keys: each key once, never worked on twice at the same time, errors with a growing delay."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 60.0


@dataclass(frozen=True, order=True)
class Key:
    """Which DPOJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class KeyQueue:
    """Runs a handler for keys.

    A key that is added while it waits is not added again; one that is added while it's handled is handled once more
    afterwards. The handler returns the seconds after which it wants to see the key again, or None.
    """

    def __init__(self, handle: Callable[[Key], Awaitable[float | None]], workers: int) -> None:
        self._handle = handle
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        self._running: set[Key] = set()
        self._again: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._errors: dict[Key, int] = {}
        self._tasks = [asyncio.create_task(self._work(), name=f"reconcile-{i}") for i in range(workers)]

    @property
    def alive(self) -> bool:
        """Whether every worker still works."""
        return not any(task.done() for task in self._tasks)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: Key) -> None:
        """Handle a key as soon as a worker is free."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._running:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Handle a key later, unless it's due sooner anyway."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if key in self._waiting or (timer is not None and timer.when() <= loop.time() + seconds):
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self.add, key)

    async def close(self) -> None:
        """Stop the workers where they are; every step of a reconcile may be the last."""
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            self._running.add(key)
            try:
                delay = await self._handle(key)
                self._errors.pop(key, None)
            except Exception as error:
                count = self._errors[key] = self._errors.get(key, 0) + 1
                delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(count - 1, 10))
                logger.warning("%s: %s; trying again in %.1f s", key, error or type(error).__name__, delay)
                logger.debug("%s", key, exc_info=True)
            finally:
                self._running.discard(key)
            if key in self._again:
                self._again.discard(key)
                delay = 0 if key not in self._errors else delay
            if delay is not None:
                self.add(key) if delay <= 0 else self.add_after(key, delay)
