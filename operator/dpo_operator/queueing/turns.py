"""The global placement turn: one gang of the cluster is placed at a time, and namespaces take turns.

In memory only. Every pass over a job reports its TurnState, so after a restart the state is complete once every job had a
pass. Until then no turn is given.
"""

import time
from collections.abc import Callable, Iterable, Iterator

from dpo_operator.planning.gangs import YIELD_SECONDS, Priority, TurnState
from dpo_operator.planning.observed import Turn
from dpo_operator.queueing.key import Key
from dpo_operator.queueing.shares import Shares

# Turns are given after this time even if some jobs could not be read.
FIRST_PASSES_SECONDS = 120.0
# Entries that were not refreshed within this time are ignored.
FRESH_SECONDS = 120.0
# A holder gives its turn back when it is over. One that has not by this time, such as one whose old pods do not end, is passed over.
LATE_SECONDS = YIELD_SECONDS + 30.0


def _no_wake(_: Key) -> None:
    """Default wake: do nothing."""


class Turns:
    """Jobs that are being placed or wait for it. Methods never await, so claims are atomic.

    wake: called with the key of a job that needs a pass, because its turn has come or others have begun to wait.
    """

    def __init__(self, wake: Callable[[Key], None] = _no_wake, clock: Callable[[], float] = time.monotonic) -> None:
        self.wake = wake
        self._clock = clock
        self._begun = self._reported_at = clock()
        self._unseen: set[Key] = set()
        # Last refresh of: jobs whose Job is resumed; jobs that have the turn and are about to resume their Job.
        self._placing: dict[Key, float] = {}
        self._claims: dict[Key, float] = {}
        self._waiting: dict[Key, tuple[Priority, float]] = {}
        # Since when a namespace has had jobs that wait.
        self._queued: dict[str, float] = {}
        self._shares = Shares(clock)

    def expect(self, keys: Iterable[Key]) -> None:
        """Jobs that exist: each must have a pass before a turn is given."""
        self._begun = self._clock()
        self._unseen = set(keys)

    def report(self, key: Key, state: TurnState, priority: Priority) -> Turn:
        """Note the state of a job, and give it the turn when it waits and comes first."""
        now = self._clock()
        if now - self._reported_at > FRESH_SECONDS:
            # No pass for FRESH_SECONDS (outage of the API server), so entries may be stale. Each holder must have a pass first, as
            # after a start.
            self.expect({*self._placing, *self._claims})
        self._reported_at = now
        all_known = self._unseen == {key}
        self._unseen.discard(key)
        if state is TurnState.WAITING:
            return self._ask(key, priority)
        had = self._drop(key)
        if state is TurnState.PLACING:
            self._placing[key] = now
            return self._granted(key)
        self._shares.end(key)
        if had or all_known:
            self._wake_next()
        return Turn(False, self._others_wait(key))

    def _granted(self, key: Key) -> Turn:
        self._shares.begin(key)
        return Turn(True, self._others_wait(key), self._shares.left(key.namespace, self._windows()))

    def _ask(self, key: Key, priority: Priority) -> Turn:
        self._placing.pop(key, None)
        if key not in self._claims:
            self._shares.end(key)
        is_new = key not in self._waiting
        self._waiting[key] = (priority, self._clock())
        self._queued.setdefault(key.namespace, self._clock())
        if is_new:
            for holder in {*self._placing, *self._claims}:
                self.wake(holder)
        # With thousands of waiting jobs, the first one is computed only when the turn is free.
        first = self._next() if self._is_free() else None
        if key in self._claims or first == key:
            self._claims[key] = self._clock()
            return self._granted(key)
        if first is not None:
            self.wake(first)
        return Turn(False, True)

    def release_unless(self, key: Key, *, resumes: bool) -> None:
        """Give a granted turn back unless the plan resumes the Job, so that its pods are placed now."""
        if key in self._claims and not resumes:
            del self._claims[key]
            self._shares.end(key)
            # Do not wake the caller.
            self._wake_next(except_key=key)

    def forget(self, key: Key) -> None:
        """Drop a job that is gone."""
        self._unseen.discard(key)
        self._shares.end(key)
        if self._drop(key):
            self._wake_next()

    def _drop(self, key: Key) -> bool:
        """Drop a job's entries. Returns whether it had the turn."""
        if self._waiting.pop(key, None) and not any(other.namespace == key.namespace for other in self._waiting):
            del self._queued[key.namespace]
        had = key in self._placing or key in self._claims
        self._placing.pop(key, None)
        self._claims.pop(key, None)
        return had

    def _is_free(self) -> bool:
        known = not self._unseen or self._clock() - self._begun > FIRST_PASSES_SECONDS
        return known and not any(self._holds(*each) for each in (*self._placing.items(), *self._claims.items()))

    def _holds(self, key: Key, refreshed_at: float) -> bool:
        """Whether a job has the turn: it was looked at lately, and others have not waited too long for it."""
        now = self._clock()
        others = [since for namespace, since in self._windows().items() if namespace != key.namespace]
        late = others and now - max(self._shares.held_since(key), min(others)) > LATE_SECONDS
        return refreshed_at >= now - FRESH_SECONDS and not late

    def _fresh(self) -> Iterator[tuple[Priority, Key]]:
        oldest = self._clock() - FRESH_SECONDS
        return ((priority, key) for key, (priority, refreshed_at) in self._waiting.items() if refreshed_at >= oldest)

    def _windows(self) -> dict[str, float]:
        """Since when each namespace that waits has had no turn."""
        namespaces = {key.namespace for _, key in self._fresh()}
        return {each: max(self._queued[each], self._shares.last(each)) for each in namespaces}

    def _next(self) -> Key | None:
        """Who has the next turn: of the namespaces that may have one now, the first rank, then the one whose last turn is longest ago."""
        windows = self._windows()
        self._shares.forget_before(min(windows.values(), default=self._clock()))
        may = {namespace for namespace in windows if self._shares.may_begin(namespace, windows)}
        order = (
            ((priority[0], self._shares.last(key.namespace), priority[1]), key)
            for priority, key in self._fresh()
            if key.namespace in may
        )
        _, first = min(order, default=(None, None))
        return first

    def _others_wait(self, key: Key) -> bool:
        return any(other != key for _, other in self._fresh())

    def _wake_next(self, except_key: Key | None = None) -> None:
        if self._is_free() and (first := self._next()) is not None and first != except_key:
            self.wake(first)
