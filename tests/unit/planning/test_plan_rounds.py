"""Rounds on fresh answers: which phase follows, what is kept of each round, and what a failure costs."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.reports import CheckpointRecord
from dpo_operator.api.status import DPOJobStatus, Restart, State
from dpo_operator.api.statusparts.rounds import RoundStatus
from dpo_operator.planning.actions import Plan
from dpo_operator.planning.objects import ChildPod
from tests.unit.planning.build import (
    NOON,
    a_child,
    a_job,
    a_pod,
    a_reading,
    a_status,
    a_view,
    condition,
    decide,
    ended,
    termination_text,
)
from tests.unit.planning.world import World

pytestmark = pytest.mark.unit

LENGTH = {"type": "builtin", "builtin": {"name": "length", "tokens": 5}}


def rounds(number: int = 2, **fields: Any) -> Any:
    return a_job(iterative={"rounds": number, "judge": LENGTH, **fields}, failurePolicy={"maxRestarts": 1000})


def in_round(phase: names.Phase, number: int = 2, attempt: int = 2, **fields: Any) -> DPOJobStatus:
    return a_status(phase, attempt, round=number, **fields)


def succeeded(status: DPOJobStatus, job: Any, **said: Any) -> Plan:
    """The decision when the pods of the current phase have ended well."""
    assert status.phase is not None
    text = termination_text(0, phase=status.phase, attempt=status.attempt, **said)
    count = 2 if status.phase in ("generate", "train") else 1
    pods = [ended(i, 0, phase=status.phase, attempt=status.attempt, text=text) for i in range(count)]
    return decide(status, a_view(a_child(status.phase, status.attempt), *pods), job)


def records(status: DPOJobStatus) -> list[tuple[int, int]]:
    return [record.age for record in status.recorded_checkpoints]


def test_a_life_of_two_rounds() -> None:
    world = World(job=rounds())
    world.settle()
    status = world.status
    assert status.state is State.COMPLETE
    of_rounds = [(phase, number) for number in (1, 2) for phase in ("generate", "judge", "train", "export")]
    assert world.steps_made == [("prepare", 0), *of_rounds, ("generate", 3), ("judge", 3), ("export", 0)]
    assert [getattr(status.attempts, phase) for phase in names.PHASES] == [1, 3, 3, 2, 3]
    assert [(each.round, each.pairs, each.win_rate_previous) for each in status.rounds] == [
        (1, 60, "0.625"),
        (2, 60, "0.625"),
    ]


@pytest.mark.parametrize(
    ("end", "last"),
    [("Saturated", ["judge 2", "export 0"]), ("RoundsWorse", ["judge 2", "export 0"]), ("BudgetSpent", ["train 2", "export 2", "export 0"])],
)  # fmt: skip
def test_a_judge_ends_the_rounds(end: str, last: list[str]) -> None:
    world = World(job=rounds(4), ends={2: end})
    world.settle()
    assert [f"{phase} {number}" for phase, number in world.steps_made][-len(last) :] == last
    assert world.status.state is State.COMPLETE
    assert world.status.rounds[-1].ended == end
    assert "No further round is trained" in world.status.message


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_faults_change_neither_the_order_nor_the_end(data: st.DataObject) -> None:
    """Pods die, nodes are drained, and the operator dies after any write; each phase of each round still comes once."""
    world = World(job=rounds())
    quiet = World(job=rounds())
    quiet.settle()
    world.disturb(data)
    if world.status.state is State.COMPLETE:
        assert world.steps_made == quiet.steps_made
        assert world.status.rounds == quiet.status.rounds
    else:  # training that fails without progress is given up
        assert condition(world.status, c.FAILED)[1] == c.NO_PROGRESS


def test_a_failed_generator_starts_the_phase_again_in_the_same_round() -> None:
    failed = ended(1, 137, phase="generate", attempt=2, reason="OOMKilled")
    running = ended(0, 0, phase="generate", attempt=2)
    decision = decide(in_round("generate"), a_view(a_child("generate", 2, failed=True), running, failed), rounds())
    status = decision.status
    assert (status.phase, status.round, status.attempts.generate) == ("generate", 2, 3)
    assert (status.restart_history[-1].reason, status.counted_restarts) == ("OOMKilled", 1)


def test_a_judge_that_is_configured_wrong_fails_the_job() -> None:
    text = termination_text(77, "the endpoint answered 401", phase="judge", attempt=2)
    pod = ended(0, 77, phase="judge", attempt=2, text=text)
    status = decide(in_round("judge"), a_view(a_child("judge", 2, failed=True), pod), rounds()).status
    assert condition(status, c.FAILED) == ("True", "AccessDenied")
    assert "401" in status.message


def test_a_round_ends_with_one_recorded_checkpoint() -> None:
    known = [CheckpointRecord(step=step, attempt=2, digest="ab" * 32) for step in (10, 20, 30)]
    status = in_round("export", recorded_checkpoints=known, furthest_step=30)
    decision = succeeded(status, rounds(3), export_path="rounds/0002/export")
    assert (decision.status.phase, decision.status.round) == ("generate", 3)
    assert records(decision.status) == [(2, 30)]
    assert [event.reason for event in decision.events] == ["RoundTrained"]
    judged = succeeded(
        decision.status.model_copy(update={"phase": "judge", "attempts": decision.status.attempts.next("judge")}),
        rounds(3),
        round={"round": 3, "prompts": 8},
    )
    assert (judged.status.phase, judged.status.furthest_step, judged.status.progress) == ("train", 0, None)


def test_an_earlier_round_s_checkpoints_give_way_to_this_one_s() -> None:
    known = [CheckpointRecord(step=30, attempt=2, digest="cd" * 32)]
    read = a_reading(10, attempt=3, checkpoint=10)
    text = termination_text(137, attempt=3, progress=read.model_dump(mode="json"))
    status = in_round("train", 3, attempt=3, recorded_checkpoints=known)
    view = a_view(a_child("train", 3, failed=True), ended(0, 137, attempt=3, text=text), ended(1, 137, attempt=3))
    # The record of the earlier round stays: the round began with it.
    assert records(decide(status, view, rounds(4)).status) == [(2, 30), (3, 10)]


def test_a_report_of_another_round_is_dropped() -> None:
    known = [RoundStatus(round=1, pairs=50)]
    said = {"round": {"round": 7, "pairs": 1}, "compared": {"round": 2, "pairs": 1}}
    status = succeeded(in_round("judge", rounds=known), rounds(9), **said).status
    assert [(each.round, each.pairs) for each in status.rounds] == [(1, 50)]


def test_the_newest_rounds_are_kept() -> None:
    known = [RoundStatus(round=number) for number in range(1, 11)]
    said = {"round": {"round": 11, "pairs": 5}}
    status = succeeded(in_round("judge", 11, rounds=known), rounds(20), **said).status
    assert [each.round for each in status.rounds] == list(range(2, 12))


def test_what_was_judged_is_told() -> None:
    said = {
        "round": {"round": 2, "pairs": 70, "prompts": 100, "ties": 9, "judge_calls": 600, "ended": "RoundsWorse"},
        "compared": {"round": 1, "pairs": 60, "win_rate_previous": 0.41, "win_rate_error": 0.035, "win_rate_initial": 0.41},
    }  # fmt: skip
    judged, warned = succeeded(in_round("judge"), rounds(3), **said).events
    assert "70 pairs of 100 prompts, 9 ties, 600 calls" in judged.message
    assert "Win rate of round 1 against the policy before it: 0.41 ± 0.035" in judged.message
    assert (warned.type, warned.reason) == ("Warning", c.ROUNDS_ENDED)
    assert "round 1 is worse" in warned.message


def test_generators_take_no_turn_and_are_made_with_their_round() -> None:
    decision = decide(in_round("generate", 2, attempt=1, created=False), a_view(), rounds())
    (made,) = decision.actions
    labels = made.manifest["metadata"]["labels"]  # type: ignore[union-attr]
    assert (labels[names.LABEL_PHASE], labels[names.LABEL_ROUND]) == ("generate", "2")
    assert made.manifest["spec"]["suspend"] is False  # type: ignore[union-attr]


def test_a_job_of_another_size_generates_again_in_its_size() -> None:
    from dpo_operator.planning.objects import Size

    child = a_child("generate", 2, size=Size(1, 1))
    decision = decide(in_round("generate"), a_view(child), rounds())
    assert (decision.status.phase, decision.status.attempts.generate) == ("generate", 3)
    assert "Generation resumes in size 2x1" in decision.status.message


@pytest.mark.parametrize("said", [{}, {"round": None}])
def test_a_judge_whose_report_is_lost_judges_again(said: dict[str, Any]) -> None:
    decision = succeeded(in_round("judge"), rounds(3), **said)
    assert (decision.status.phase, decision.status.round, decision.status.attempts.judge) == ("judge", 2, 3)
    assert decision.status.restarts == 1


def test_restarts_of_an_earlier_round_do_not_count_as_no_progress() -> None:
    at = NOON - timedelta(hours=1)
    before = [
        Restart(time=at, phase="train", attempt=n, round=1, reason="NodeRestarted", counting="Uncounted", step=5)
        for n in range(1, 11)
    ]
    status = in_round("train", attempt=11, restart_history=before)
    lost = [a_pod(0, attempt=11), ended(1, 255, attempt=11, reason="Unknown")]
    assert decide(status, a_view(a_child(attempt=11), *lost), rounds(3)).status.state is not State.FAILED
    here = [restart.model_copy(update={"round": 2}) for restart in before]
    status = in_round("train", attempt=11, restart_history=here)
    assert decide(status, a_view(a_child(attempt=11), *lost), rounds(3)).status.state is State.FAILED


def test_generators_use_gpus_as_long_as_each_runs() -> None:
    def look(seconds: int, status: DPOJobStatus, *pods: ChildPod) -> DPOJobStatus:
        view = a_view(a_child("generate", 2), *pods)
        return decide(status, view, rounds(3), now=NOON + timedelta(seconds=seconds)).status

    first, second = a_pod(0, "generate", 2), a_pod(1, "generate", 2)
    one = look(0, in_round("generate"), first, a_pod(1, "generate", 2, pod_phase="Pending", ready=False))
    both = look(10, one, first, second)
    assert (both.usage.gpu_seconds, both.usage.gpus) == (10, 2)
    left = look(30, both, first, ended(1, 0, phase="generate", attempt=2))
    assert (left.usage.gpu_seconds, left.usage.gpus) == (50, 1)
