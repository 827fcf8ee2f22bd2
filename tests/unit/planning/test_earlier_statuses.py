"""A job whose status an earlier operator wrote goes on under this one."""

import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from dpo_operator.api.exitcodes import ABORTS
from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.api.types import DPOJob
from dpo_operator.planning.objects import token_digest
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.plan import plan
from tests.fixtures.make_statuses import answer, ending
from tests.unit.planning.build import PARTS, SETTINGS, TOKEN, AllHeld

pytestmark = pytest.mark.unit

FILES = sorted((Path(__file__).resolve().parents[2] / "fixtures").glob("*/statuses.json"))
RECORDS: list[dict[str, Any]] = [record for file in FILES for record in json.loads(file.read_text())]

# Fields of the status that have another name now: the earlier name -> today's.
RENAMED = {
    "restartsCountTowardsMax": "countedRestarts",
    "bestStep": "furthestStep",
    "placement": "placementWait",
    "activeSeconds": "activeSecondsBefore",
    "retried": "lastHandledRetry",
}
# The same of workers and of restartHistory, whose values have other names, too.
COUNTING = {"counted": "Counted", "infrastructure": "Uncounted", "planned": "Planned"}
# Words for people. They may change; reasons, which programs read, may not.
WORDS = ("message", "ending", "activity")
# What earlier versions did not have.
NEWER = (
    "usage",
    "earlierJobs",
    "claimTokens",
    "findings",
    "accuracy",
    "evalAccuracy",
    "round",
    "rounds",
    "generate",
    "judge",
    "leg",
    "legs",
    "units",
)


def renamed(status: dict[str, Any]) -> dict[str, Any]:
    """An earlier status with today's names."""
    current = {RENAMED.get(key, key): value for key, value in status.items()}
    if workers := current.get("workers"):
        current["workers"] = {{"ready": "started"}.get(key, key): value for key, value in workers.items()}
    if history := current.get("restartHistory"):
        current["restartHistory"] = [
            {key: value for key, value in restart.items() if key != "failureClass"}
            | {"counting": COUNTING[restart["failureClass"]]}
            for restart in history
        ]
    return current


def without_newer(value: Any) -> Any:
    """Without the fields that earlier versions did not have, as long as they say nothing."""
    if isinstance(value, dict):
        return {key: without_newer(part) for key, part in value.items() if part or key not in NEWER}
    return value


def without_words(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_words(part) for key, part in value.items() if key not in (*WORDS, *NEWER)}
    return [without_words(part) for part in value] if isinstance(value, list) else value


def seen_then(document: dict[str, Any]) -> Observed:
    """The cluster as an earlier operator saw it, with today's types: it had the fields of the parts side by side."""
    flat = dict(document)
    if flat.get("claim"):
        # Older than the label by which a claim's owner lets DPOJobs use it.
        flat["claim"] = {"open": True} | flat["claim"]
    for name, part in PARTS.items():
        flat[name] = {f.name: flat.pop(f.name) for f in dataclasses.fields(part) if f.name in flat}
    # It took one look for certain.
    return dataclasses.replace(TypeAdapter(Observed).validate_python(flat), held=AllHeld())


def parsed(record: dict[str, Any]) -> tuple[DPOJob, DPOJobStatus, Observed, datetime]:
    # The API server stored the defaults of then with the job.
    spec = record["job"]["spec"]
    stored = record["job"] | {"spec": spec | {"evaluation": {"samples": 4} | (spec.get("evaluation") or {})}}
    job, status = DPOJob.model_validate(stored), DPOJobStatus.model_validate(record["status"])
    seen = seen_then(record["observed"])
    if seen.claim is not None and seen.claim.made_for is not None:
        # The label told whose a claim is.
        seen = dataclasses.replace(seen, claim=dataclasses.replace(seen.claim, token_digest=token_digest(TOKEN)))
    seen = dataclasses.replace(seen, claim_token=TOKEN)
    status = status.model_copy(update={"claim_tokens": [token_digest(TOKEN)]})
    return job, status, seen, datetime.fromisoformat(record["now"])


def aborted(record: dict[str, Any]) -> bool:
    """Whether a rank was aborted while others go on."""
    pods = record["observed"].get("pods") or []
    return any((pod.get("exit") or {}).get("code") in ABORTS for pod in pods) and any(pod.get("ready") for pod in pods)


def test_the_fixtures_show_every_state_and_much_else():
    statuses = [DPOJobStatus.model_validate(record["status"]) for record in RECORDS]
    assert len({json.dumps(record["status"], sort_keys=True) for record in RECORDS}) >= 30
    assert {status.state for status in statuses} == {None, *State} - {State.GENERATING, State.JUDGING}
    assert {status.phase for status in statuses} == {None, "prepare", "train", "export"}
    fields = {key for record in RECORDS for key, value in record["status"].items() if value}
    known = {field.alias for field in DPOJobStatus.model_fields.values()}
    assert {RENAMED.get(field, field) for field in fields} <= known
    assert {"restartHistory", "recordedCheckpoints", "checkpoint", "straggler", "placement", "notBefore"} <= fields
    asked = {(action["verb"], action["kind"]) for record in RECORDS for action in record["answer"]["actions"]}
    assert {("create", "Job"), ("delete", "Job"), ("delete", "Pod")} <= asked


@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_no_field_is_lost(number: int):
    for status in (RECORDS[number]["status"], RECORDS[number]["answer"]["status"]):
        read = DPOJobStatus.model_validate(status).to_dict()
        assert without_newer(read) == without_newer(renamed(status))


@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_the_same_is_decided(number: int):
    record = RECORDS[number]
    then, now = record["answer"], answer(plan(*parsed(record), SETTINGS))
    volume, claim = record["status"].get("volume"), record["observed"].get("claim")
    if volume and claim and volume["claimUid"] != claim["uid"]:
        # Earlier versions enlarged it, too.
        assert "PersistentVolumeClaim" not in [action["kind"] for action in now["actions"]]
        return
    if aborted(record) and not now["actions"]:
        # Earlier versions did not wait for what the other ranks say of it.
        assert now["requeueAfter"] > 0
        return
    assert without_words(now["status"]) == without_words(renamed(then["status"]))
    # Earlier versions used a claim again without being asked to.
    events = [event for event in then["events"] if not event.endswith(" ClaimReused")]
    assert {**now, "status": None} == {**then, "status": None, "events": events}


@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_the_job_ends_as_it_would_have(number: int):
    then = RECORDS[number]["ending"]
    assert without_newer(ending(*parsed(RECORDS[number]))) == (None if then is None else renamed(then))


def test_most_of_the_jobs_get_to_their_end():
    ends = [record["ending"]["state"] for record in RECORDS if record["ending"] is not None]
    assert ends.count("Complete") >= 90
    assert len(ends) >= 110
