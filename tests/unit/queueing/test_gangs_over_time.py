"""Many gangs over hours: the decisions and the turns together, on a cluster that only one gang fits on."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from dpo_operator.planning import gangs, resizing
from dpo_operator.planning.actions import SuspendJob
from dpo_operator.planning.failures import Failure
from dpo_operator.planning.plan import plan
from dpo_operator.planning.restarts import after_failure
from dpo_operator.planning.transitions import Moment, changed, running
from dpo_operator.queueing.key import Key
from dpo_operator.queueing.turns import LATE_SECONDS, Turns
from tests.unit.planning.build import NOON, SETTINGS, a_child, a_job, a_pod, a_status, a_view

pytestmark = pytest.mark.unit

UNSCHEDULED = {"pod_phase": "Pending", "node": "", "ready": False, "unscheduled": "0/8 nodes are available"}


class Hall:
    """A clock, the turns, and the gangs that take them."""

    def __init__(self, look_seconds: float = 30) -> None:
        self.time, self.look_seconds = 0.0, look_seconds
        self.woken: set[Key] = set()
        self.turns = Turns(self.woken.add, lambda: self.time)
        self.gangs: list[Gang] = []

    def run(self, seconds: float) -> None:
        end = self.time + seconds
        while self.time < end:
            for gang in self.gangs:
                if self.time >= gang.look_at or gang.key in self.woken:
                    self.woken.discard(gang.key)
                    gang.look()
            self.time += 0.5
            self.woken &= {gang.key for gang in self.gangs}
            if not self.woken:
                # Nothing happens until then.
                self.time = max(self.time, min(end, *(gang.look_at for gang in self.gangs)))


class Gang:
    """A job of two nodes that waits for its first turn. fits: whether it gets them as soon as its Job is resumed."""

    def __init__(self, hall: Hall, namespace: str, name: str = "pairs", *, fits: bool) -> None:
        self.hall, self.fits = hall, fits
        self.key, self.began = Key(namespace, name), hall.time
        self.job = a_job(metadata={"uid": f"uid-{namespace}-{name}", "namespace": namespace})
        self.status, self.child = a_status(), a_child(suspended=True, resource_version="7")
        self.look_at, self.resumed_at, self.turns = hall.time, 0.0, 0
        self.placed_at: float | None = None
        hall.gangs.append(self)

    def look(self) -> None:
        hall, now = self.hall, NOON + timedelta(seconds=self.hall.time)
        state = {} if self.fits else UNSCHEDULED
        seen = a_view(
            self.child,
            *(() if self.child.suspended else (a_pod(i, attempt=self.child.attempt, **state) for i in (0, 1))),
        )
        state = gangs.turn_state(self.job, self.status, seen, now)
        turn = hall.turns.report(self.key, state, gangs.priority(self.status, now))
        placing = hall.time - self.resumed_at if state is gangs.TurnState.PLACING else 0.0
        seen = replace(seen, turn=replace(turn, placing_seconds=placing))
        if self.fits and not self.child.suspended and self.placed_at is None:
            self.placed_at = hall.time
        decision = plan(self.job, self.status, seen, now, SETTINGS)
        switches = [a.value for a in decision.actions if isinstance(a, SuspendJob)]
        hall.turns.release_unless(self.key, resumes=False in switches)
        self.status = decision.status
        for value in switches:
            self.child = replace(self.child, suspended=value)
            if not value:
                self.resumed_at, self.turns = hall.time, self.turns + 1
        self.look_at = hall.time + self._pause(decision.requeue_after)

    def _pause(self, requeue_after: float | None) -> float:
        """Until the next look: with pods that wait, longer than in life, which spares time and not the rule."""
        after = requeue_after or 0.5
        return self.hall.look_seconds if after == gangs.WAIT_SECONDS else min(after, self.hall.look_seconds)

    def delete(self) -> None:
        """The DPOJob is deleted, and its pods with it."""
        self.hall.gangs.remove(self)
        self.hall.turns.forget(self.key)

    def edit(self) -> None:
        """Another number of nodes: the next attempt, as a resize makes it."""
        status, at = self.status, Moment(NOON + timedelta(seconds=self.hall.time), 1)
        self.status = resizing.resize(status, self.job, self.child, at).status
        self.child = a_child(attempt=self.status.attempt, suspended=True, resource_version="7")
        self.look_at = self.hall.time

    def crash(self) -> None:
        """All of its pods run, and one ends: the next attempt, which finds its nodes taken."""
        at = Moment(NOON + timedelta(seconds=self.hall.time), 1)
        ran = running(changed(self.status, placement_wait=None), at)
        failure = Failure("Killed", "infrastructure", "killed")
        self.status = changed(
            after_failure(ran, failure, self.job.spec.failure_policy, at).status, not_before=None, restart_history=[]
        )
        self.child = a_child(attempt=self.status.attempt, suspended=True, resource_version="7")
        self.look_at = self.hall.time


@pytest.mark.parametrize("stuck", [1, 3, 6, 20])
def test_gangs_that_never_fit_delay_another_by_one_turn_at_most(stuck: int):
    hall = Hall()
    others = [Gang(hall, f"stuck-{i}", fits=False) for i in range(stuck)]
    hall.run(3600)
    good = Gang(hall, "good", fits=True)
    hall.run(300)
    assert good.placed_at is not None
    assert good.placed_at - 3600 <= gangs.YIELD_SECONDS + 5
    # They go on asking, and none of them is forgotten.
    before = [gang.turns for gang in others]
    hall.run(3600)
    gained = [gang.turns - turns for gang, turns in zip(others, before, strict=True)]
    assert min(gained) >= 1
    assert max(gained) - min(gained) <= 3


def test_a_gang_that_fits_at_last_gets_its_turn_among_those_that_do_not():
    hall = Hall()
    gangs_ = [Gang(hall, f"gang-{i}", fits=False) for i in range(8)]
    hall.run(3600)
    gangs_[3].fits = True
    hall.run(8 * gangs.YIELD_SECONDS + gangs.LAST_BACKOFF_SECONDS)
    assert gangs_[3].placed_at is not None


def keep(hall: Hall, mine: list[Gang], count: int, namespace: str, *, fits: bool = False) -> None:
    """Have a number of gangs, with names that sort first and were never used before."""
    while len(mine) < count:
        mine.append(Gang(hall, namespace, f"a{hall.time:.0f}-{len(mine)}", fits=fits))


# What other namespaces do, all at once and every so many seconds. They know the rule, and their gangs fit on no node.
def flood(hall: Hall, mine: list[Gang]) -> None:
    """Many gangs, of names that sort first."""
    keep(hall, mine, 6, "aa-flood")


def edit_all(hall: Hall, mine: list[Gang]) -> None:
    """Gangs whose size is edited before they ever run."""
    keep(hall, mine, 3, "ab-edits")
    for gang in mine:
        gang.edit()


def make_again(hall: Hall, mine: list[Gang]) -> None:
    """Gangs that are deleted after each turn and made again under another name."""
    for gang in [gang for gang in mine if gang.turns and gang.child.suspended]:
        gang.delete()
        mine.remove(gang)
    keep(hall, mine, 3, "ac-again")


def crash_all(hall: Hall, mine: list[Gang]) -> None:
    """Gangs that really ran: restarts go before first starts."""
    keep(hall, mine, 3, "ad-crash")
    for gang in mine:
        if gang.child.suspended:
            gang.crash()


def short_turns(hall: Hall, mine: list[Gang]) -> None:
    """Gangs that are placed at once, delete and come again."""
    for gang in [gang for gang in mine if gang.placed_at is not None]:
        gang.delete()
        mine.remove(gang)
    keep(hall, mine, 2, "ae-short", fits=True)


def never_ending_pods(hall: Hall, mine: list[Gang]) -> None:
    """A gang whose resumed Job nobody suspends again: it holds its turn as long as it is let."""
    while len(mine) < 1:
        mine.append(Gang(hall, "af-holds", "a", fits=False))
    mine[0].child = replace(mine[0].child, suspended=False)
    mine[0].resumed_at = hall.time


ADVERSARIES = (flood, edit_all, make_again, crash_all, short_turns, never_ending_pods)


def longest_waits(
    hall: Hall, adversaries: Sequence[Callable[[Hall, list[Gang]], None]], hours: float, every: float = 20
) -> list[float]:
    """Seconds that honest gangs waited until they were placed, one every 20 minutes in one of two namespaces."""
    owned: list[list[Gang]] = [[] for _ in adversaries]
    honest: list[Gang] = []
    while hall.time < hours * 3600:
        if not honest or hall.time - honest[-1].began >= 1200:
            honest.append(Gang(hall, f"zz-honest-{len(honest) % 2}", f"job-{len(honest)}", fits=True))
        for act, mine in zip(adversaries, owned, strict=True):
            act(hall, mine)
        hall.run(every)
        for gang in [gang for gang in honest if gang.placed_at is not None and gang in hall.gangs]:
            gang.delete()
    return [(gang.placed_at or hall.time) - gang.began for gang in honest]


@pytest.mark.parametrize("adversary", ADVERSARIES, ids=lambda act: act.__name__)
def test_one_namespace_costs_an_honest_gang_one_turn(adversary: Callable[[Hall, list[Gang]], None]):
    waits = longest_waits(Hall(), (adversary,), 1)
    late = LATE_SECONDS + gangs.WAIT_SECONDS
    limit = late if adversary is never_ending_pods else gangs.YIELD_SECONDS
    assert max(waits) <= limit + 5


@pytest.mark.parametrize("hours", [3, pytest.param(24, marks=pytest.mark.exhaustive)])
def test_for_hours_an_honest_gang_waits_one_turn_of_each_namespace(hours: int):
    waits = longest_waits(Hall(look_seconds=100), ADVERSARIES, hours, every=300)
    assert len(waits) >= 2.9 * hours
    turns = (len(ADVERSARIES) - 1) * gangs.YIELD_SECONDS + LATE_SECONDS + 100
    # The other honest namespace has its turn, too.
    assert max(waits) <= turns + gangs.YIELD_SECONDS + 10
