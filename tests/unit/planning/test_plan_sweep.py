"""Sweeps: legs one after another, what is kept of each, which one is exported, and what a failure costs."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.reports import CheckpointRecord
from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.api.statusparts.findings import FindingStatus
from dpo_operator.api.statusparts.legs import LegStatus
from dpo_operator.planning import recorded
from dpo_operator.planning.actions import Plan
from tests.unit.planning.build import (
    a_child,
    a_job,
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

LEGS = [("prepare", 0), *(("train", leg) for leg in (1, 2, 3, 4)), ("export", 0)]


def sweep(**fields: Any) -> Any:
    data = {"train": {"source": "t"}, "evalFraction": 0.1}
    grid = {"beta": [0.1, 0.3], "seed": [1, 2]} | fields
    return a_job(data=data, sweep=grid, failurePolicy={"maxRestarts": 1000})


def a_leg(number: int, **fields: Any) -> LegStatus:
    return LegStatus(leg=number, **{"outcome": "Trained", "accuracy": "0.5", "settings": "beta 1"} | fields)


def record(step: int, attempt: int) -> CheckpointRecord:
    return CheckpointRecord(step=step, attempt=attempt, digest=f"{attempt}" * 64)


def in_leg(number: int, attempt: int, **fields: Any) -> DPOJobStatus:
    return a_status("train", attempt, leg=number, **fields)


def succeeded(status: DPOJobStatus, job: Any, **said: Any) -> Plan:
    """The decision when the pods of a leg have ended well."""
    read = a_reading(30, attempt=status.attempt, checkpoint=30).model_dump(mode="json")
    text = termination_text(0, attempt=status.attempt, progress=read, **said)
    pods = [ended(i, 0, attempt=status.attempt, text=text) for i in range(2)]
    return decide(status, a_view(a_child(attempt=status.attempt), *pods), job)


def test_a_life_of_four_legs() -> None:
    world = World(job=sweep(), accuracy={2: 0.9})
    world.settle()
    status = world.status
    assert status.state is State.COMPLETE
    assert world.steps_made == LEGS
    assert (status.attempts.prepare, status.attempts.train, status.attempts.export) == (1, 4, 1)
    assert [(leg.leg, leg.settings, leg.chosen) for leg in status.legs] == [
        (1, "beta 0.1, seed 1", False), (2, "beta 0.1, seed 2", True), (3, "beta 0.3, seed 1", False), (4, "beta 0.3, seed 2", False)
    ]  # fmt: skip
    assert "Leg 2 of 4 is exported, the best by eval_reward_accuracy: beta 0.1, seed 2." in status.message
    assert status.final_metrics is not None
    assert status.final_metrics.eval_reward_accuracy == "0.9000"


def test_an_unhealthy_leg_ends_and_the_sweep_goes_on() -> None:
    world = World(job=sweep(), ill=frozenset({2}), accuracy={2: 1.0, 3: 0.6})
    world.settle()
    assert world.status.state is State.COMPLETE
    assert world.steps_made == LEGS
    assert [leg.leg for leg in world.status.legs if leg.chosen] == [3]


def test_without_a_healthy_leg_the_job_fails_and_lists_them() -> None:
    world = World(job=sweep(), ill=frozenset({1, 2, 3, 4}))
    world.settle()
    assert world.status.state is State.FAILED
    assert world.steps_made == LEGS[:-1]
    assert condition(world.status, c.FAILED)[1] == "StoppedByDiagnosis"
    assert "all 4 were unhealthy: leg 1 (beta 0.1, seed 1)" in world.status.message
    assert len(world.status.legs) == 4


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_faults_change_neither_the_legs_nor_the_choice(data: st.DataObject) -> None:
    """Pods die, nodes are drained, and the operator dies after any write; each leg still comes once."""
    world, quiet = World(job=sweep(), accuracy={3: 0.9}), World(job=sweep(), accuracy={3: 0.9})
    quiet.settle()
    world.disturb(data)
    if world.status.state is State.COMPLETE:
        assert world.steps_made == quiet.steps_made
        assert [(leg.leg, leg.chosen) for leg in world.status.legs] == [
            (leg.leg, leg.chosen) for leg in quiet.status.legs
        ]
    else:  # training that fails without progress is given up
        assert condition(world.status, c.FAILED)[1] == c.NO_PROGRESS


def test_a_leg_has_its_gang_its_label_and_its_own_checkpoints() -> None:
    first = a_leg(1, checkpoints=[record(30, 1)])
    status = in_leg(2, 3, created=False, legs=[first], recorded_checkpoints=[record(30, 1), record(10, 2)])
    (made,) = decide(status, a_view(), sweep()).actions
    manifest = made.manifest  # type: ignore[union-attr]
    labels = manifest["metadata"]["labels"]
    assert (labels[names.LABEL_PHASE], labels[names.LABEL_LEG]) == ("train", "2")
    assert names.LABEL_ROUND not in labels
    env = {each["name"]: each.get("value") for each in manifest["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env[names.ENV_LEG] == "2"
    given = recorded.for_current_attempt(status)
    assert given is not None
    # The first leg's checkpoint is not one of this leg, whose steps have the same numbers.
    assert ([each.age for each in given.checkpoints], given.last_attempt) == ([(2, 10)], 2)


def test_the_export_may_use_the_chosen_leg_s_checkpoints_alone() -> None:
    legs = [a_leg(1, chosen=True, checkpoints=[record(20, 1), record(30, 1)]), a_leg(2, checkpoints=[record(30, 2)])]
    status = a_status("export", 1, created=False, legs=legs, recorded_checkpoints=[record(30, 2)])
    status = status.model_copy(update={"attempts": status.attempts.model_copy(update={"train": 2})})
    given = recorded.for_current_attempt(status)
    assert given is not None
    assert ([each.age for each in given.checkpoints], given.last_attempt) == ([(1, 20), (1, 30)], 1)
    (made,) = decide(status, a_view(), sweep()).actions
    assert made.manifest["metadata"]["labels"][names.LABEL_LEG] == "1"  # type: ignore[union-attr]


def test_what_a_leg_brought_is_kept_and_told() -> None:
    said = {
        "leg": 2,
        "outcome": "Trained",
        "steps": 30,
        "step": 30,
        "accuracy": 0.75,
        "loss": 0.5,
        "margin": 1e6,
        "drift": 0.01,
    }
    plan = succeeded(in_leg(2, 2, legs=[a_leg(1)], recorded_checkpoints=[record(30, 1)]), sweep(), leg=said)
    status = plan.status
    assert (status.phase, status.leg, status.furthest_step, status.progress) == ("train", 3, 0, None)
    second = status.legs[1]
    assert (second.settings, second.accuracy, second.margin) == ("beta 0.1, seed 2", "0.75", "1e+06")
    assert [each.age for each in second.checkpoints] == [(2, 30)]
    (event,) = plan.events
    assert (event.reason, event.type) == ("LegTrained", "Normal")
    assert "Leg 2 (beta 0.1, seed 2) is trained: 30 steps, accuracy 0.75, loss 0.5, drift 0.01" in event.message


def test_an_unhealthy_leg_is_told_as_a_warning() -> None:
    said = {
        "leg": 1,
        "outcome": "Unhealthy",
        "message": "It writes gibberish.",
        "findings": ["Gibberish"],
        "unhealthy": True,
    }
    (event,) = succeeded(in_leg(1, 1), sweep(), leg=said).events
    assert (event.reason, event.type) == (c.LEG_UNHEALTHY, "Warning")
    assert "It writes gibberish." in event.message


@pytest.mark.parametrize("said", [{}, {"leg": {"leg": 3, "outcome": "Trained"}}])
def test_a_leg_whose_report_is_lost_is_asked_again(said: dict[str, Any]) -> None:
    status = succeeded(in_leg(2, 2), sweep(), **said).status
    assert (status.phase, status.leg, status.attempts.train, status.restarts) == ("train", 2, 3, 1)
    assert status.legs == []
    assert status.restart_history[-1].leg == 2


def test_the_health_at_the_end_is_that_of_the_exported_leg() -> None:
    ill = FindingStatus(code="Gibberish", severity="Unhealthy", phase="train", message="Bad.")
    said = {"leg": 4, "outcome": "Unhealthy", "findings": ["Gibberish"], "unhealthy": True}
    status = succeeded(in_leg(4, 4, legs=[a_leg(1)], findings=[ill]), sweep(), leg=said).status
    assert (status.phase, status.findings) == ("export", [])
    assert condition(status, c.HEALTHY)[:2] == ("True", c.NO_FINDINGS)
