"""What may change in a stored DPOJob, what kubectl shows of it, and how the CRD itself is applied."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml

from dpo_operator.api.rules import spec as rules
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_operator.generate import crd, validations
from tests.apiserver.client import Requests
from tests.apiserver.mutants import COMPLETE, ROUNDS, a_job
from tests.cluster.rig.control_plane import ControlPlane
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.apiserver

# Another valid value for each field that must not change.
CHANGES: dict[str, Any] = {
    "model": {"name": "org/other"},
    "data": {"maxLength": 4096},
    "method": {"beta": 0.2},
    "adapter": {"rank": 64},
    "training": {"epochs": 2},
    "evaluation": {"everySteps": 5},
    "sweep": {"beta": [0.1, 0.2]},
    "resumeFrom": {"step": 9},
    "earlyStopping": {"patience": 9},
    "export": {"checkpoint": "last"},
    "tracking": {"wandb": {"project": "other"}},
    "pod": {"sharedMemory": "1Gi"},
    "queue": {"kind": "Kueue", "name": "other"},
    "checkpoint.everySteps": 7,
    "checkpoint.keepLast": 9,
    "checkpoint.keepBest": 9,
    "checkpoint.requireRecordedDigest": True,
    "checkpoint.async": False,
    "checkpoint.mirror": {"to": "s3://bucket/other"},
    "checkpoint.volume.claimName": "other",
    "checkpoint.volume.storageClassName": "other",
    "checkpoint.volume.accessMode": "ReadWriteOnce",
    "checkpoint.volume.retention": "Retain",
    "cache": {"claimName": "other"},
    "access": {"hub": {"endpoint": "https://other.example"}},
    "managedBy": "example.org/third",
}
ALLOWED: dict[str, Any] = {
    "suspend": False,
    "activeDeadlineSeconds": None,
    "ttlSecondsAfterFinished": 60,
    "failurePolicy": {"maxRestarts": 9},
    "cleanPodPolicy": "All",
    "diagnosis": {"stopOn": ["Gibberish"]},
    "nodes": 3,
    "gpusPerNode": 2,
}


def nested(path: str, value: Any) -> dict[str, Any]:
    """A field of a part, by its path."""
    *parts, last = path.split(".")
    found: dict[str, Any] = {last: value}
    for part in reversed(parts):
        found = {part: found}
    return found


@pytest.fixture
def stored(dpojobs: Requests) -> Iterator[Requests]:
    """A client of an API that holds the complete job."""
    answer = dpojobs.create(COMPLETE)
    assert answer.accepted, answer.message
    yield dpojobs
    dpojobs.delete("a-job")


def test_each_field_may_change_or_not() -> None:
    assert set(CHANGES) == set(rules.IMMUTABLE_FIELDS)
    every = {field.alias or name for name, field in DPOJobSpec.model_fields.items()}
    # Rounds have a test of their own.
    assert {field.partition(".")[0] for field in CHANGES} | set(ALLOWED) | {"iterative"} == every


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_what_decides_the_result_can_not_change(stored: Requests, field: str) -> None:
    answer = stored.merge("a-job", {"spec": nested(field, CHANGES[field])})
    assert not answer.accepted
    assert f"spec.{field}: Invalid value" in answer.message
    assert validations.IMMUTABLE_MESSAGE in answer.message


@pytest.mark.parametrize("field", sorted(ALLOWED))
def test_what_steers_the_operator_can_change(stored: Requests, field: str) -> None:
    answer = stored.merge("a-job", {"spec": {field: ALLOWED[field]}})
    assert answer.accepted, answer.message


@pytest.mark.parametrize(("size", "accepted"), [("2000Gi", True), ("2Ti", True), ("1Mi", False)])
def test_a_volume_may_grow(stored: Requests, size: str, accepted: bool) -> None:
    answer = stored.merge("a-job", {"spec": nested(rules.VOLUME_SIZE, size)})
    assert answer.accepted == accepted, answer.message
    assert accepted or f"spec.{rules.VOLUME_SIZE}: Invalid value" in answer.message
    assert accepted or validations.GROWING_MESSAGE in answer.message


def test_rounds_may_grow_and_nothing_else_of_them(dpojobs: Requests) -> None:
    assert dpojobs.create(a_job("rounds", iterative=ROUNDS)).accepted
    for change, accepted in (
        *(({"rounds": 3}, True), ({"rounds": 2}, False), ({"promptsPerRound": None}, False), ({"prompts": None}, False)),
        *(({"prompts": {"limit": 2000}}, False), ({"judge": {"builtin": {"words": ["mild"]}}}, False), ({"winRate": {"prompts": 9}}, False)),
        *(({"pairs": {"minGap": 0.25}}, False), (None, False)),
    ):  # fmt: skip
        answer = dpojobs.merge("rounds", {"spec": {"iterative": change}})
        assert answer.accepted == accepted, (change, answer.message)
        assert (
            accepted or validations.IMMUTABLE_MESSAGE in answer.message or validations.ROUNDS_MESSAGE in answer.message
        )
    dpojobs.delete("rounds")
    assert dpojobs.create(a_job("rounds")).accepted
    answer = dpojobs.merge("rounds", {"spec": {"iterative": ROUNDS}})
    dpojobs.delete("rounds")
    assert "spec.iterative: Invalid value" in answer.message


def test_an_optional_part_can_not_be_taken_away(stored: Requests) -> None:
    answer = stored.merge("a-job", {"spec": {"earlyStopping": None}})
    assert "spec.earlyStopping: Invalid value" in answer.message


def test_an_optional_part_can_not_be_added(dpojobs: Requests) -> None:
    without = deepcopy(COMPLETE)
    without["metadata"]["name"] = "b-job"
    del without["spec"]["earlyStopping"]
    assert dpojobs.create(without).accepted
    answer = dpojobs.merge("b-job", {"spec": {"earlyStopping": {}}})
    dpojobs.delete("b-job")
    assert "spec.earlyStopping: Invalid value" in answer.message


def test_a_status_goes_through_the_api_unchanged(stored: Requests) -> None:
    now = "2026-01-02T03:04:05Z"
    status = {
        "observedGeneration": 1,
        "state": "Training",
        "phase": "train",
        "attempts": {"prepare": 1, "train": 3, "export": 0},
        "restarts": 2,
        "conditions": [
            {
                "type": "Running",
                "status": "True",
                "lastTransitionTime": now,
                "reason": "PodsRunning",
                "message": "4 pods",
            }
        ],
        "progress": {
            "step": 120,
            "maxSteps": 600,
            "percent": "20%",
            "eta": "1h12m",
            "loss": "0.6123",
            "rewardMargin": "0.231",
            "rewardAccuracy": "0.66",
            "updatedTime": now,
        },
    }
    written = DPOJobStatus.model_validate(status).to_dict()
    answer = stored.merge("a-job", {"status": written}, subresource="/status")
    assert answer.accepted, answer.message
    assert answer.body["status"] == written


def test_an_unknown_state_is_refused(stored: Requests) -> None:
    answer = stored.merge("a-job", {"status": {"state": "Thinking"}}, subresource="/status")
    assert "status.state: Unsupported value" in answer.message


def test_kubectl_shows_how_the_job_does(stored: Requests, control_plane: ControlPlane) -> None:
    progress = {"step": 120, "maxSteps": 600, "percent": "20%", "eta": "1h12m", "loss": "0.6123"}
    progress |= {"rewardMargin": "0.001", "rewardAccuracy": "0.96", "accuracy": "0.96 (margin near 0)"}
    health = {"type": "Healthy", "status": "False", "reason": "FlatLoss", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    status = {"state": "Training", "restarts": 2, "progress": progress, "conditions": [health]}
    assert stored.merge("a-job", {"status": status}, subresource="/status").accepted
    header, row = control_plane.kubectl("get", "dpo").splitlines()
    assert re.split(r" {2,}", header.strip()) == [
        "NAME",
        "STATE",
        "STEP",
        "PROGRESS",
        "ETA",
        "LOSS",
        "MARGIN",
        "ACCURACY",
        "HEALTHY",
        "RESTARTS",
        "AGE",
    ]
    learning = ["0.6123", "0.001", "0.96 (margin near 0)", "False"]
    assert re.split(r" {2,}", row)[:-1] == ["a-job", "Training", "120", "20%", "1h12m", *learning, "2"]
    assert "dpojob.dpo-operator.dev/a-job" in control_plane.kubectl("get", "all")


def test_kubectl_explains_every_part(dpojobs: Requests, control_plane: ControlPlane) -> None:
    text = control_plane.kubectl("explain", "dpojob.spec", "--recursive")
    for field in ("tokenSecretRef", "minConfidence", "hangTimeoutSeconds", "targetModules"):
        assert field in text
    assert "Strength of the pull to the reference" in control_plane.kubectl("explain", "dpojob.spec.method.beta")


def test_the_file_in_crds_applies_on_the_client_and_on_the_server(
    dpojobs: Requests, control_plane: ControlPlane
) -> None:
    file = REPOSITORY / "crds" / "dpo-operator.dev_dpojobs.yaml"
    # kubectl's client-side apply keeps a copy in an annotation, and annotations end at 256 KiB.
    assert len(json.dumps(yaml.safe_load(file.read_text(encoding="utf-8")))) < 262_144 * 3 / 4
    control_plane.kubectl("apply", "-f", str(file))
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(file))
    served = json.loads(control_plane.kubectl("get", "crd", crd.NAME, "-o", "json"))
    by_type = {c["type"]: c for c in served["status"]["conditions"]}
    assert by_type["Established"]["status"] == "True"
    assert by_type.get("NonStructuralSchema", {"status": "False"})["status"] == "False"


RIGHT = sorted(file for file in (REPOSITORY / "examples").rglob("*.yaml") if file.parent.name != "bad")


@pytest.mark.parametrize("file", RIGHT, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_the_examples_are_accepted(dpojobs: Requests, control_plane: ControlPlane, file: Any) -> None:
    control_plane.kubectl("apply", "--dry-run=server", "-f", str(file))


def test_what_the_server_stores_is_read_back(dpojobs: Requests) -> None:
    answer = dpojobs.dry_run(a_job())
    assert DPOJob.model_validate(answer.body).spec == DPOJobSpec.model_validate(a_job()["spec"])
