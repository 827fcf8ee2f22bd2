"""Whose turn it is: one gang of the cluster is being placed at a time.

Nothing here is stored. Each look at a job tells how it stands, so an operator that starts knows all of it once it has
looked at every job; until then nobody gets a turn.
"""

import time
from collections.abc import Callable, Iterable, Iterator

from dpo_operator.planning.gangs import Priority, TurnState
from dpo_operator.planning.observed import Turn
from dpo_operator.queueing.key import Key

# A job that can't be looked at does not keep all others from training for ever.
FIRST_LOOKS_SECONDS = 120.0
# A job that waits or is being placed is looked at several times within this; one that was not is passed over.
FRESH_SECONDS = 120.0


def _nobody(_: Key) -> None:
    """Nobody has to be told."""


class Turns:
    """All jobs that are being placed or wait for it. Its methods run to their end without an await, so one job claims at a time.

    wake: called with the key of a job that should be looked at, because its turn has come or others have begun to wait.
    """

    def __init__(self, wake: Callable[[Key], None] = _nobody, clock: Callable[[], float] = time.monotonic) -> None:
        self.wake = wake
        self._clock = clock
        self._begun = self._looked_at = clock()
        self._unseen: set[Key] = set()
        # When it was looked at: a job with a resumed Job; one that was given the turn, whose Job may be resumed at any moment.
        self._placing: dict[Key, float] = {}
        self._claims: dict[Key, float] = {}
        self._waiting: dict[Key, tuple[Priority, float]] = {}

    def expect(self, keys: Iterable[Key]) -> None:
        """Jobs that exist: each must be looked at before anyone gets a turn."""
        self._begun = self._clock()
        self._unseen = set(keys)

    def look(self, key: Key, state: TurnState, priority: Priority) -> Turn:
        """Note how a job stands, and give it the turn when it waits and the turn is its own."""
        now = self._clock()
        if now - self._looked_at > FRESH_SECONDS:
            # The API server was away, and not one of the holders: each is looked at again first, as after a start.
            self.expect({*self._placing, *self._claims})
        self._looked_at = now
        all_known = self._unseen == {key}
        self._unseen.discard(key)
        if state is TurnState.WAITING:
            return self._ask(key, priority)
        had = self._leave(key)
        if state is TurnState.PLACING:
            self._placing[key] = now
        elif had or all_known:
            self._wake_next()
        return Turn(state is TurnState.PLACING, self._others_wait(key))

    def _ask(self, key: Key, priority: Priority) -> Turn:
        self._placing.pop(key, None)
        is_new = key not in self._waiting
        self._waiting[key] = (priority, self._clock())
        if is_new:
            for holder in {*self._placing, *self._claims}:
                self.wake(holder)
        # Among thousands that wait, the first is looked for only when there is a turn to give.
        first = self._next() if self._is_free() else None
        if key in self._claims or first == key:
            self._claims[key] = self._clock()
            return Turn(True, self._others_wait(key))
        if first is not None:
            self.wake(first)
        return Turn(False, True)

    def settle(self, key: Key, resumes: bool) -> None:
        """What was decided with the turn. resumes: whether the job's pods are to be placed now."""
        if key in self._claims and not resumes:
            del self._claims[key]
            # Not itself: it has just been looked at.
            self._wake_next(but=key)

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._unseen.discard(key)
        if self._leave(key):
            self._wake_next()

    def _leave(self, key: Key) -> bool:
        """Forget a job's part. Returns whether it had the turn."""
        self._waiting.pop(key, None)
        had = key in self._placing or key in self._claims
        self._placing.pop(key, None)
        self._claims.pop(key, None)
        return had

    def _is_free(self) -> bool:
        known = not self._unseen or self._clock() - self._begun > FIRST_LOOKS_SECONDS
        oldest = self._clock() - FRESH_SECONDS
        held = any(looked_at >= oldest for looked_at in (*self._placing.values(), *self._claims.values()))
        return known and not held

    def _fresh(self) -> Iterator[tuple[Priority, Key]]:
        oldest = self._clock() - FRESH_SECONDS
        return ((priority, key) for key, (priority, looked_at) in self._waiting.items() if looked_at >= oldest)

    def _next(self) -> Key | None:
        _, first = min(self._fresh(), default=(None, None))
        return first

    def _others_wait(self, key: Key) -> bool:
        return any(other != key for _, other in self._fresh())

    def _wake_next(self, but: Key | None = None) -> None:
        if self._is_free() and (first := self._next()) is not None and first != but:
            self.wake(first)
