"""What the administrator does not allow is refused before anything is made."""

from dataclasses import replace
from datetime import timedelta

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api.allowed.allow import Allow
from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.planning.objects import Claim
from dpo_operator.planning.plan import plan
from tests.unit.planning.build import (
    NOON,
    SETTINGS,
    a_child,
    a_claim,
    a_job,
    a_pod,
    a_status,
    a_view,
    condition,
    decide,
)

pytestmark = pytest.mark.unit

ON_THE_HOST = a_job(pod={"network": {"hostNetwork": True}})


def test_a_new_job_that_asks_for_too_much_fails_and_says_what_allows_it() -> None:
    result = decide(DPOJobStatus(), a_view(claim=None, support=()), ON_THE_HOST)
    assert result.status.state is State.FAILED
    assert condition(result.status, c.FAILED) == ("True", c.NOT_ALLOWED)
    assert "spec.pod.network.hostNetwork" in result.status.message
    assert "allow.hostNetwork" in result.status.message
    assert result.actions == ()
    allowing = replace(SETTINGS, allow=Allow(host_network=True))
    assert plan(ON_THE_HOST, DPOJobStatus(), a_view(claim=None, support=()), NOON, allowing).status.phase == "prepare"


def test_a_job_accepted_before_makes_no_new_pods_until_it_is_allowed() -> None:
    waiting = decide(a_status(created=False), a_view(), ON_THE_HOST)
    assert condition(waiting.status, c.RUNNING) == ("False", c.NOT_ALLOWED)
    assert waiting.actions == ()
    later = NOON + timedelta(seconds=10)
    allowing = replace(SETTINGS, allow=Allow(host_network=True))
    made = plan(ON_THE_HOST, waiting.status, a_view(), later, allowing)
    assert [action.kind for action in made.actions] == ["Job"]


def test_pods_that_run_already_are_left_alone() -> None:
    pods = [a_pod(index=index) for index in (0, 1)]
    result = decide(a_status(), a_view(a_child(), *pods), ON_THE_HOST)
    assert condition(result.status, c.RUNNING)[0] == "True"


OPEN, FOREIGN = a_claim(name="c", open=True), a_claim(name="c", open=False)


@pytest.mark.parametrize(
    "spec",
    [
        {"data": {"train": {"source": "pvc://c/pairs.jsonl"}}},
        {"model": {"name": "pvc://c"}},
        {"cache": {"claimName": "c"}},
        {"resumeFrom": {"source": "pvc://c/uid-1"}},
    ],
    ids=["data", "model", "cache", "checkpoint"],
)
def test_an_input_is_mounted_only_when_its_owner_lets_jobs_use_it(spec: dict) -> None:
    job, status = a_job(**spec), a_status("prepare", created=False)
    missing = decide(status, a_view(), job)
    assert condition(missing.status, c.RUNNING) == ("False", c.VOLUME_NOT_FOUND)
    refused = decide(status, a_view(inputs={"c": FOREIGN}), job)
    assert condition(refused.status, c.RUNNING) == ("False", c.NOT_ALLOWED)
    assert "label pvc c dpo-operator.dev/allow-use=true" in refused.status.message
    assert (missing.actions, refused.actions) == ((), ())
    for view, settings in (
        (a_view(inputs={"c": OPEN}), SETTINGS),
        (a_view(inputs={"c": FOREIGN}), replace(SETTINGS, allow=Allow(unlabelled_claims=True))),
    ):
        assert [action.kind for action in plan(job, status, view, NOON, settings).actions] == ["Job"]
    # Training mounts none of them.
    assert [action.kind for action in decide(a_status(created=False), a_view(), job).actions] == ["Job"]


def test_a_volume_is_used_only_when_its_owner_lets_jobs_use_it() -> None:
    job = a_job(checkpoint={"volume": {"claimName": "c"}})
    for status in (a_status("prepare", created=False, volume=None), a_status(created=False)):
        refused = decide(status, a_view(claim=replace(FOREIGN, uid="uid-claim")), job)
        assert condition(refused.status, c.RUNNING) == ("False", c.NOT_ALLOWED)
        assert refused.actions == ()
        made = decide(status, a_view(claim=replace(OPEN, uid="uid-claim")), job)
        assert [action.kind for action in made.actions] == ["Job"]


@pytest.mark.parametrize(
    ("labels", "is_open"),
    [
        ({}, False),
        ({"dpo-operator.dev/allow-use": "true"}, True),
        ({"dpo-operator.dev/allow-use": "false"}, False),
        ({"app.kubernetes.io/managed-by": "dpo-operator"}, True),
        ({"app.kubernetes.io/managed-by": "Helm"}, False),
    ],
)
def test_claims_are_open_by_label_or_when_the_operator_made_them(labels: dict[str, str], is_open: bool) -> None:
    raw = {"metadata": {"name": "c", "uid": "u", "labels": labels}, "spec": {}, "status": {}}
    assert Claim.from_raw(raw).open is is_open
