"""Decisions when nodes or gpusPerNode change, and when the operator itself did."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.builders.config import config_name
from dpo_operator.builders.job import build_child_job
from dpo_operator.builders.networks import CLOSED
from dpo_operator.planning import guarding
from dpo_operator.planning.actions import Create, Delete, Patch
from dpo_operator.planning.objects import ChildJob, ChildPod, Claim, Guard, Size, Support, owner_uid
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.plan import plan
from dpo_operator.planning.validate import read_job
from tests.unit.planning.build import (
    NOON,
    SETTINGS,
    UID,
    AllHeld,
    a_child,
    a_claim,
    a_job,
    a_pod,
    a_reading,
    a_status,
    a_view,
    condition,
    decide,
)

TWO = a_child(size=Size(2, 1))
RUNNING = (TWO, a_pod(0), a_pod(1))
GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.fault(32, 42)
@pytest.mark.parametrize("spec", [{"nodes": 3}, {"nodes": 1}, {"gpusPerNode": 4}], ids=str)
def test_another_size_is_the_next_attempt_and_counts_against_nothing(spec: dict[str, Any]) -> None:
    running = decide(a_status(), a_view(*RUNNING, progress=a_reading(40))).status
    decision = decide(running, a_view(*RUNNING, progress=a_reading(40)), a_job(generation=2, **spec))
    status = decision.status
    assert decision.actions == ()
    assert (status.attempts.train, status.active_job, status.not_before) == (2, None, None)
    assert (status.restarts, status.counted_restarts, status.counted_restart_times) == (1, 0, [])
    (record,) = status.restart_history
    assert (record.reason, record.counting, record.attempt, record.step) == ("Resized", "Planned", 1, 40)
    assert [(e.type, e.reason) for e in decision.events] == [("Normal", "Resized")]
    assert condition(status, c.RESIZED) == ("True", "Resized")


def test_pods_of_the_old_size_save_first_and_then_the_new_size_is_made() -> None:
    job = a_job(generation=2, nodes=3)
    status = decide(a_status(), a_view(*RUNNING), job).status
    decision = decide(status, a_view(*RUNNING), job)
    assert decision.actions == (Delete("Job", TWO.name, TWO.uid),)
    going = tuple(a_pod(i, deleting=True) for i in range(2))
    assert decide(decision.status, a_view(*going), job).actions == ()
    (create,) = decide(decision.status, a_view(), job).actions
    assert isinstance(create, Create)
    assert (create.name, create.manifest["spec"]["completions"]) == ("pairs-train-2", 3)
    assert create.manifest["metadata"]["annotations"] == {names.ANNOTATION_SIZE: "3x1"}
    (volume,) = [v for v in create.manifest["spec"]["template"]["spec"]["volumes"] if v["name"] == "config"]
    assert volume["configMap"]["name"] == config_name(job) != config_name(a_job())


def test_there_and_back_ends_in_the_last_size() -> None:
    status = decide(a_status(), a_view(*RUNNING), a_job(generation=2, nodes=3)).status
    (create,) = decide(status, a_view(), a_job(generation=3)).actions
    assert isinstance(create, Create)
    assert create.manifest["spec"]["completions"] == 2
    status = decide(status, a_view(a_child(attempt=2, size=Size(2, 1))), a_job(generation=3)).status
    assert (status.attempts.train, status.restarts) == (2, 1)


@pytest.mark.parametrize("phase", ["prepare", "export"])
def test_other_phases_have_no_size(phase: names.Phase) -> None:
    seen = a_view(a_child(phase), a_pod(0, phase))
    assert decide(a_status(phase), seen, a_job(nodes=5)).status.restarts == 0


def test_a_resize_while_suspended_takes_effect_at_the_next_attempt() -> None:
    held = decide(a_status(), a_view(*RUNNING), a_job(suspend=True)).status
    assert decide(held, a_view(), a_job(generation=3, suspend=True, nodes=3)).status.attempts.train == 2
    resumed = decide(held, a_view(), a_job(generation=4, nodes=3)).status
    (create,) = decide(resumed, a_view(), a_job(generation=4, nodes=3)).actions
    assert isinstance(create, Create)
    assert create.manifest["spec"]["completions"] == 3
    assert resumed.restarts == 0


def test_a_gang_that_waits_for_its_turn_is_made_anew() -> None:
    waiting = a_child(size=Size(2, 1), suspended=True)
    assert decide(a_status(), a_view(waiting), a_job(nodes=4)).status.attempts.train == 2


def test_nodes_that_can_not_share_the_volume_do_not_stop_the_attempt() -> None:
    child, claim = a_child(size=Size(1, 1)), a_claim(access_modes=("ReadWriteOnce",))
    seen = a_view(child, a_pod(0), claim=claim)
    before = decide(a_status(), seen, a_job(nodes=1)).status
    decision = decide(before, seen, a_job(generation=2, nodes=2))
    assert (decision.status.attempts.train, decision.status.restarts) == (1, 0)
    assert condition(decision.status, c.RESIZED) == ("False", "ResizeRefused")
    assert condition(decision.status, c.RUNNING)[0] == "True"
    (event,) = decision.events
    assert (event.type, event.reason) == ("Warning", "ResizeRefused")
    assert "ReadWriteMany" in event.message
    again = decide(decision.status, seen, a_job(generation=2, nodes=2))
    assert again.events == ()
    assert again.status == decision.status
    # The ConfigMap that was looked for is that of the larger size; the attempt mounts its own, which is there.
    other = replace(seen, support=())
    kinds = {action.kind for action in decide(decision.status, other, a_job(generation=2, nodes=2)).actions}
    assert "ConfigMap" not in kinds
    back = decide(decision.status, seen, a_job(generation=3, nodes=1))
    assert condition(back.status, c.RESIZED) == ("True", "Resized")


def test_resizes_make_no_failure_wait() -> None:
    status = decide(a_status(), a_view(*RUNNING), a_job(generation=2, nodes=3)).status
    failed = a_child(attempt=2, size=Size(3, 1), failed=True, failed_seconds=60)
    after = decide(status, a_view(failed), a_job(generation=2, nodes=3), now=NOON + timedelta(seconds=5)).status
    assert after.attempts.train == 3
    assert after.not_before is None


def test_what_a_webhook_makes_of_the_resources_is_no_other_size() -> None:
    raw = build_child_job(a_job(gpusPerNode=8), "train", 1, SETTINGS.image)
    raw["metadata"]["uid"] = "uid"
    raw["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"][names.GPU] = "80"
    assert ChildJob.from_raw(raw).size == Size(2, 8)


@pytest.mark.fault(12)
@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.json")), ids=lambda f: f.stem)
def test_what_the_previous_version_made_is_adopted(file: Path) -> None:
    held = json.loads(file.read_text(encoding="utf-8"))
    raw, children = held["dpojob"], held["children"]
    job, status = read_job(raw), DPOJobStatus.model_validate(raw["status"])
    assert not hasattr(job, "sentences")

    def of(kind: str) -> list[dict[str, Any]]:
        return [child for child in children if child["kind"] == kind]

    claims = [Claim.from_raw(claim) for claim in of("PersistentVolumeClaim")]
    seen = Observed(
        jobs=tuple(ChildJob.from_raw(child) for child in of("Job")),
        pods=tuple(ChildPod.from_raw(child) for child in of("Pod")),
        claim=claims[0],
        held=AllHeld(),
        support=tuple(Support("Service", owner_uid(child)) for child in of("Service")),
    )
    for _ in range(5):
        decision = plan(job, status, seen, NOON, SETTINGS)
        assert not [action for action in decision.actions if isinstance(action, Delete)]
        assert "Job" not in [action.kind for action in decision.actions]
        assert (decision.status.attempts, decision.status.restarts) == (status.attempts, status.restarts)
        status = decision.status
    assert status.state == raw["status"]["state"]


def test_a_size_that_can_not_be_told_is_no_other_one() -> None:
    assert decide(a_status(), a_view(replace(TWO, size=None), *RUNNING[1:]), a_job(nodes=5)).status.restarts == 0
    assert not Size(2, None).differs(Size(2, 8))
    assert Size.parse("2x") is None


def test_the_budget_of_a_gang_does_not_hold_a_single_pod() -> None:
    gangs_own = Guard("PodDisruptionBudget", names.budget_name("pairs"), "uid-budget", UID, {"minAvailable": 1})
    (patch,) = [
        a
        for a in guarding.repairs(a_job(nodes=1), "train", a_view(guards=(gangs_own,)), CLOSED)
        if isinstance(a, Patch)
    ]
    assert (patch.uid, patch.manifest["spec"]["minAvailable"]) == ("uid-budget", 0)
    never = guarding.repairs(a_job(nodes=1), "train", a_view(guards=()), CLOSED)
    assert "PodDisruptionBudget" not in [action.kind for action in never]
