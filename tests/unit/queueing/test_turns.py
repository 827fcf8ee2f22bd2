"""Whose turn it is, told by a list of looks."""

from datetime import UTC, datetime, timedelta

import pytest

from dpo_operator.planning.gangs import Priority, TurnState
from dpo_operator.queueing.key import Key
from dpo_operator.queueing.turns import FIRST_PASSES_SECONDS, FRESH_SECONDS, Turns

pytestmark = pytest.mark.unit

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
A, B, C = (Key("ns", name) for name in "abc")


def since(minutes: int = 0, *, restarting: bool = False) -> Priority:
    return 0 if restarting else 1, NOON + timedelta(minutes=minutes)


class Hall:
    """Turns with a clock that the test moves, and who was woken."""

    def __init__(self) -> None:
        self.time = 0.0
        self.woken: list[Key] = []
        self.turns = Turns(self.woken.append, lambda: self.time)

    def ask(self, key: Key, order: Priority | None = None) -> bool:
        return self.turns.report(key, TurnState.WAITING, order or since()).may_place

    def place(self, key: Key) -> None:
        self.turns.report(key, TurnState.PLACING, since())

    def leave(self, key: Key) -> None:
        self.turns.report(key, TurnState.NONE, since())


@pytest.fixture
def hall() -> Hall:
    return Hall()


def test_one_at_a_time_and_the_next_is_woken(hall: Hall):
    assert hall.ask(A)
    assert not hall.ask(B)
    hall.place(A)
    assert not hall.ask(B)
    hall.woken.clear()
    hall.leave(A)
    assert hall.woken == [B]
    assert hall.ask(B)


def test_a_claim_holds_from_the_moment_it_is_given(hall: Hall):
    """Between the decision and the patch's effect another worker looks at another job."""
    assert hall.ask(A)
    hall.turns.release_unless(A, resumes=True)
    assert not hall.ask(B)
    # The patch was refused, or got lost: it's still A's turn.
    assert hall.ask(A)


def test_a_turn_that_is_not_used_goes_on(hall: Hall):
    assert hall.ask(A)
    assert not hall.ask(B)
    hall.woken.clear()
    hall.turns.release_unless(A, resumes=False)
    # It's first all the same; were it woken, it would be looked at without end.
    assert hall.woken == []
    assert not hall.ask(B)
    assert hall.woken == [A]
    hall.leave(A)
    assert hall.ask(B)


def test_who_has_waited_longest_goes_first(hall: Hall):
    hall.place(A)
    assert not hall.ask(B, since(5))
    assert not hall.ask(C, since(1))
    hall.leave(A)
    assert not hall.ask(B, since(5))
    assert hall.woken[-1] == C
    assert hall.ask(C, since(1))


def test_a_restarting_gang_goes_before_those_that_wait(hall: Hall):
    hall.place(A)
    hall.ask(B, since(0))
    hall.ask(C, since(9, restarting=True))
    hall.leave(A)
    assert not hall.ask(B, since(0))
    assert hall.ask(C, since(9, restarting=True))


def test_nobody_gets_a_turn_before_every_job_was_looked_at(hall: Hall):
    hall.turns.expect([A, B, C])
    assert not hall.ask(A)
    hall.leave(B)
    assert not hall.ask(A)
    # The last one that is looked at turns out to have had a turn when the operator died.
    hall.place(C)
    assert not hall.ask(A)
    hall.leave(C)
    assert hall.ask(A)


def test_the_last_first_look_wakes_who_waits(hall: Hall):
    hall.turns.expect([A, B])
    assert not hall.ask(A)
    hall.leave(B)
    assert hall.woken == [A]


def test_a_job_that_cannot_be_looked_at_does_not_stop_the_others_for_ever(hall: Hall):
    hall.turns.expect([A, B])
    assert not hall.ask(A)
    hall.time = FIRST_PASSES_SECONDS + 1
    assert hall.ask(A)


def test_a_deleted_job_that_was_never_looked_at_is_not_waited_for(hall: Hall):
    hall.turns.expect([A, B])
    assert not hall.ask(A)
    hall.turns.forget(B)
    assert hall.ask(A)


def test_a_deleted_job_gives_its_turn_away(hall: Hall):
    hall.ask(A)
    hall.place(A)
    hall.ask(B)
    hall.woken.clear()
    hall.turns.forget(A)
    assert hall.woken == [B]
    assert hall.ask(B)


def test_a_waiting_job_that_is_never_looked_at_again_is_passed_over(hall: Hall):
    hall.place(A)
    hall.ask(B, since(0))
    hall.leave(A)
    hall.time = FRESH_SECONDS + 1
    assert hall.ask(C, since(1))


def test_a_holder_that_can_not_be_looked_at_any_more_is_passed_over(hall: Hall):
    hall.place(A)
    assert not hall.ask(B)
    hall.time = FRESH_SECONDS - 1
    hall.place(A)
    hall.time = FRESH_SECONDS + 1
    assert not hall.ask(B)
    hall.time = 2 * FRESH_SECONDS
    assert hall.ask(B)
    # Its resumption was asked for, and then it could not be looked at either.
    hall.turns.release_unless(B, resumes=True)
    assert not hall.ask(C)
    hall.time = 3 * FRESH_SECONDS - 1
    assert not hall.ask(C)
    hall.time = 3 * FRESH_SECONDS + 1
    assert hall.ask(C)


def test_after_an_outage_the_holder_has_a_pass_before_the_next_turn(hall: Hall):
    """Nobody was looked at: that says nothing of the holder."""
    hall.place(A)
    hall.time = FRESH_SECONDS + 1
    assert not hall.ask(B)
    hall.place(A)
    assert not hall.ask(B)
    hall.leave(A)
    assert hall.ask(B)


def test_a_holder_that_stays_unreadable_after_an_outage_loses_the_turn(hall: Hall):
    hall.place(A)
    hall.time = FRESH_SECONDS + 1
    assert not hall.ask(B)
    hall.time += FIRST_PASSES_SECONDS / 2
    assert not hall.ask(B)
    hall.time += FIRST_PASSES_SECONDS / 2 + 1
    assert hall.ask(B)


def test_the_holder_learns_that_others_wait(hall: Hall):
    hall.place(A)
    assert not hall.turns.report(A, TurnState.PLACING, since()).others_waiting
    hall.ask(B)
    assert hall.woken == [A]
    assert hall.turns.report(A, TurnState.PLACING, since()).others_waiting
    hall.ask(B)
    assert hall.woken == [A]


def test_after_a_time_out_the_turn_is_asked_for_anew(hall: Hall):
    """Its nodes are free again and the wait is over at the same look: others that waited longer go first."""
    hall.place(A)
    hall.ask(B, since(0))
    assert not hall.ask(A, since(1))
    assert hall.ask(B, since(0))


def test_two_that_were_resumed_by_somebody_are_both_waited_for(hall: Hall):
    hall.place(A)
    hall.place(B)
    hall.leave(A)
    assert not hall.ask(C)
    hall.leave(B)
    assert hall.ask(C)
