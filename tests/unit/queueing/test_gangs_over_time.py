"""Many gangs over hours: the decisions and the turns together, on a cluster that only one gang fits on."""

from dataclasses import replace
from datetime import timedelta

import pytest

from dpo_operator.planning import gangs
from dpo_operator.planning.actions import SuspendJob
from dpo_operator.planning.plan import plan
from dpo_operator.queueing.key import Key
from dpo_operator.queueing.turns import Turns
from tests.unit.planning.build import NOON, SETTINGS, a_child, a_job, a_pod, a_status, a_view

pytestmark = pytest.mark.unit

UNSCHEDULED = {"pod_phase": "Pending", "node": "", "ready": False, "unscheduled": "0/8 nodes are available"}


class Hall:
    """A clock, the turns, and the gangs that take them."""

    def __init__(self) -> None:
        self.time = 0.0
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


class Gang:
    """A job of two nodes that waits for its first turn. fits: whether it gets them as soon as its Job is resumed."""

    def __init__(self, hall: Hall, name: str, *, fits: bool) -> None:
        self.hall, self.fits = hall, fits
        self.key = Key(name, "pairs")
        self.job = a_job(metadata={"uid": f"uid-{name}", "namespace": name})
        self.status, self.child = a_status(), a_child(suspended=True, resource_version="7")
        self.look_at, self.resumed_at, self.turns = hall.time, 0.0, 0
        self.placed_at: float | None = None
        hall.gangs.append(self)

    def look(self) -> None:
        hall, now = self.hall, NOON + timedelta(seconds=self.hall.time)
        state = {} if self.fits else UNSCHEDULED
        seen = a_view(self.child, *(() if self.child.suspended else (a_pod(0, **state), a_pod(1, **state))))
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
        self.look_at = hall.time + min(decision.requeue_after or 0.5, 30.0)


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
