"""Digests of checkpoints: kept in the status, from whoever tells of them, and handed to the next attempt."""

import json
from typing import Any

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.reports import MAX_RECORDED, CheckpointRecord, Progress, RecordedCheckpoints
from dpo_operator.planning.actions import Create
from dpo_operator.planning.plan import plan
from dpo_operator.planning.recorded import for_current_attempt, merge
from tests.unit.planning.build import (
    NOON,
    SETTINGS,
    a_child,
    a_job,
    a_pod,
    a_reading,
    a_status,
    a_view,
    decide,
    ended,
    termination_text,
)

pytestmark = pytest.mark.unit

BEGUN = a_job(resumeFrom={"source": "pvc://other-work/uid-1"})


def prepared(attempt: int = 1, **resumed: Any) -> str:
    """What a prepare says that has put another job's checkpoint on the volume."""
    ref = {"step": 300, "path": "checkpoints/step-00000300", "digest": "a" * 64, "attempt": attempt, "time": 1.0}
    found = {"source": "pvc://other-work/uid-1/checkpoints", "digest": "b" * 64, "checkpoint": ref}
    return termination_text(0, phase="prepare", **({"resumed": found} | resumed))


def test_another_jobs_checkpoint_is_recorded_before_the_first_training() -> None:
    done = a_view(a_child("prepare"), ended(0, 0, phase="prepare", text=prepared()))
    first = plan(BEGUN, a_status("prepare"), done, NOON, SETTINGS).status
    assert (first.phase, first.attempts.train) == ("train", 1)
    assert first.resumed_from is not None
    assert (first.resumed_from.step, first.resumed_from.digest) == (300, "b" * 64)
    found = c.find(first.conditions, c.PREPARED)
    assert found is not None
    assert "step 300 of “pvc://other-work/uid-1/checkpoints”" in found.message
    assert first.checkpoint is not None
    assert first.checkpoint.step == 300
    known = for_current_attempt(first)
    assert known == RecordedCheckpoints(
        last_attempt=0, checkpoints=(CheckpointRecord(step=300, attempt=1, digest="a" * 64),)
    )


@pytest.mark.parametrize("text", [prepared(resumed=None), prepared(attempt=9), ""])
def test_a_prepare_whose_record_is_lost_or_forged_runs_again(text: str) -> None:
    done = a_view(a_child("prepare", complete=True), ended(0, 0, phase="prepare", text=text))
    again = plan(BEGUN, a_status("prepare"), done, NOON, SETTINGS).status
    assert (again.phase, again.attempts.prepare, again.attempts.train) == ("prepare", 2, 0)
    assert "report is lost" in again.restart_history[-1].message
    # Without resumeFrom there is nothing to record.
    assert plan(a_job(), a_status("prepare"), done, NOON, SETTINGS).status.phase == "train"


def digest(step: int, attempt: int = 1) -> str:
    return f"{attempt:032x}{step:032x}"


def record(step: int, attempt: int = 1) -> CheckpointRecord:
    return CheckpointRecord(step=step, attempt=attempt, digest=digest(step, attempt))


def told(*records: CheckpointRecord, attempt: int = 1) -> Progress:
    """Rank 0's reading: the newest checkpoint, and all that are on the volume."""
    newest = max(records, key=lambda r: r.age)
    ref = {"step": newest.step, "attempt": newest.attempt, "digest": newest.digest, "path": "p", "time": 1.0}
    return a_reading(newest.step, attempt=attempt, checkpoint=ref["step"]).model_copy(
        update={"recorded": list(records), "checkpoint": a_reading(checkpoint=1).checkpoint.model_copy(update=ref)}
    )


def words(progress: Progress, code: int = 143) -> str:
    return termination_text(code, attempt=progress.attempt, progress=progress.model_dump(mode="json"))


def recorded(result) -> list[int]:
    return [r.step for r in result.status.recorded_checkpoints]


def test_live_reports_are_recorded_and_removed_checkpoints_forgotten():
    gang = (a_child(), a_pod(0), a_pod(1))
    result = decide(a_status(), a_view(*gang, progress=told(record(10), record(20))))
    assert recorded(result) == [10, 20]

    later = decide(result.status, a_view(*gang, progress=told(record(20), record(30))))
    assert recorded(later) == [20, 30]
    assert later.status.recorded_checkpoints[-1].digest == digest(30)

    # No answer changes nothing, and an answer from before that is late neither.
    assert recorded(decide(later.status, a_view(*gang))) == [20, 30]
    assert recorded(decide(later.status, a_view(*gang, progress=told(record(10), record(20))))) == [20, 30]


def test_a_failed_pods_termination_message_reports_its_last_commit():
    before = a_status(recorded_checkpoints=[record(10)])
    failed = ended(1, 70, text=words(told(record(10), record(20)), 70))
    result = decide(before, a_view(a_child(), a_pod(0), failed))

    assert result.status.attempts.train == 2
    assert recorded(result) == [10, 20]
    assert (result.status.checkpoint.step, result.status.checkpoint.digest) == (20, digest(20))


def test_any_rank_can_tell_when_the_node_of_rank_0_is_lost():
    alone = told(record(20)).model_copy(update={"recorded": []})
    result = decide(
        a_status(recorded_checkpoints=[record(10)]),
        a_view(a_child(), a_pod(0), ended(1, 75, text=words(alone, 75))),
    )
    assert recorded(result) == [10, 20]


def test_a_pod_that_was_stopped_after_its_attempt_was_over_is_still_heard():
    """A suspended job saves on SIGTERM when its next attempt is already decided on."""
    suspended = a_status(attempt=2, created=False, recorded_checkpoints=[record(10)])
    stopped = ended(0, 143, text=words(told(record(10), record(17))), attempt=1, deleting=True)
    result = decide(suspended, a_view(a_child(attempt=1, deleting=True), stopped), a_job(suspend=True))
    assert recorded(result) == [10, 17]


@pytest.mark.parametrize(
    "lie",
    [told(record(30, attempt=5), attempt=5), told(record(30, attempt=5), attempt=1)],
    ids=["another attempt than the pod's", "a record of an attempt to come"],
)
def test_a_pod_can_tell_of_no_later_attempt_than_its_own(lie: Progress):
    before = a_status(recorded_checkpoints=[record(10)])
    pod = ended(0, 70, text=termination_text(70, progress=lie.model_dump(mode="json")))
    assert recorded(decide(before, a_view(a_child(), pod))) == [10]


def test_words_of_an_older_attempt_change_nothing_about_a_newer_one():
    before = a_status(attempt=2, recorded_checkpoints=[record(10), record(14, 2)])
    old = ended(0, 70, text=words(told(record(10), record(20)), 70), attempt=1)
    assert recorded(decide(before, a_view(a_child(attempt=2), a_pod(0, attempt=2), a_pod(1, attempt=2), old))) == [
        10,
        14,
    ]


def test_what_was_refused_stays_recorded_while_it_is_on_the_volume():
    """Attempt 2 went back to step 10, because step 20 is not as it was recorded."""
    known = [record(10), record(20)]
    assert merge(known, told(*known, attempt=2)) == known
    # By age, not by step: attempt 2 commits step 15 after attempt 1 had committed step 20.
    assert merge(known, told(record(10), record(15, 2), attempt=2)) == [record(10), record(15, 2)]


def test_the_list_is_bounded_and_loses_its_oldest():
    many = [record(step) for step in range(1, MAX_RECORDED + 1)]
    alone = told(record(50)).model_copy(update={"recorded": []})
    assert merge(many, alone) == [*many[1:], record(50)]


def test_each_attempt_gets_what_is_recorded():
    assert for_current_attempt(a_status("prepare")) is None
    training = a_status("train", 3, created=False, recorded_checkpoints=[record(10), record(15, 2)])
    expected = RecordedCheckpoints(last_attempt=2, checkpoints=(record(10), record(15, 2)))
    assert for_current_attempt(training) == expected

    [create] = [a for a in decide(training, a_view()).actions if isinstance(a, Create) and a.kind == "Job"]
    [container] = create.manifest["spec"]["template"]["spec"]["containers"]
    [value] = [v["value"] for v in container["env"] if v["name"] == names.ENV_RECORDED_CHECKPOINTS]
    assert RecordedCheckpoints.model_validate_json(value) == expected
    # Kubernetes would expand it, and a command line can be read by every user of a node.
    assert "$" not in value
    assert digest(10) not in json.dumps(container["command"])


def test_the_export_may_use_what_the_last_attempt_committed():
    exporting = a_status("export", recorded_checkpoints=[record(100)])
    assert for_current_attempt(exporting).last_attempt == exporting.attempts.train


def test_a_first_attempt_is_told_that_there_is_nothing():
    assert for_current_attempt(a_status("train", 1)) == RecordedCheckpoints(last_attempt=0)
    assert a_job().spec.checkpoint.require_recorded_digest is False
