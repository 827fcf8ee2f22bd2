"""Which digests are trusted, and which are recorded."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api import names
from dpo_operator.api.reports import MAX_RECORDED, CheckpointRecord, CheckpointRef, RecordedCheckpoints
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.checkpoint.trust import Owner, Trust, newest_parameters, remember, trust_from_environment
from dpo_trainer.runtime.errors import TrainerError
from tests.unit.trainer.checkpoints import a_checkpoint

pytestmark = pytest.mark.unit


def record(step: int, attempt: int = 1, letter: str = "a") -> CheckpointRecord:
    return CheckpointRecord(step=step, attempt=attempt, digest=letter * 64)


def judged(known: list[CheckpointRecord], found: CheckpointRecord, *, attempts: int = 2, required: bool = False) -> str:
    """'used', 'doubted', or the reason for a refusal."""
    trust = Trust(RecordedCheckpoints(last_attempt=attempts, checkpoints=known), required)
    manifest = SimpleNamespace(step=found.step, attempt=found.attempt)
    try:
        return "doubted" if trust.judge(manifest, found.digest) else "used"  # type: ignore[arg-type]
    except BadCheckpoint as error:
        return str(error)


KNOWN = [record(50), record(100)]


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (record(100), "used"),
        (record(50), "used"),
        (record(100, letter="b"), "it was changed afterwards"),
        (record(50, letter="b"), "it was changed afterwards"),
        (record(75), "step 100 was recorded last"),
        (record(150), "doubted"),
        # Attempt 2 went back to step 50, or only added the evaluation to step 100.
        (record(60, attempt=2), "doubted"),
        (record(100, attempt=2, letter="b"), "doubted"),
        # Nobody can have made these yet.
        (record(150, attempt=3), "the last attempt was number 2, so it was put there by someone else"),
    ],
)
def test_unrecorded_checkpoints_are_used_only_if_they_may_be_the_jobs_own(found: CheckpointRecord, verdict: str):
    assert verdict in judged(KNOWN, found)


def test_a_record_can_be_required():
    assert judged(KNOWN, record(100), required=True) == "used"
    assert "expected a recorded digest (checkpoint.requireRecordedDigest)" in judged(KNOWN, record(150), required=True)


def test_before_the_first_attempt_no_checkpoint_is_trusted():
    assert "none was recorded, and the last attempt was number 0" in judged([], record(10), attempts=0)
    assert judged([], record(10), attempts=1) == "doubted"


def test_a_rollback_trusts_checkpoints_of_the_same_attempt():
    own = CheckpointRef(step=150, attempt=3, digest="c" * 64, path="p", time=0)
    again = own.model_copy(update={"step": 50, "digest": "d" * 64})
    trust = Trust(RecordedCheckpoints(last_attempt=2, checkpoints=KNOWN), required=True).with_own([own, again])

    def judge(step: int, letter: str) -> str:
        return trust.judge(SimpleNamespace(step=step, attempt=3), letter * 64)  # type: ignore[arg-type]

    assert (judge(150, "c"), judge(50, "d"), judge(100, "a")) == ("", "", "")
    for step, letter in ((150, "d"), (50, "a"), (200, "c")):
        with pytest.raises(BadCheckpoint):
            judge(step, letter)


def test_a_full_record_list_may_have_dropped_its_oldest_entries():
    full = [record(step) for step in range(100, 100 + MAX_RECORDED)]
    assert judged(full, record(50)) == "doubted"
    assert "step" in judged(full[1:], record(50))


def test_own_checkpoints_do_not_fill_the_recorded_list():
    own = [CheckpointRef(step=200 + step, attempt=3, digest="c" * 64, path="p", time=0) for step in range(MAX_RECORDED)]
    trust = Trust(RecordedCheckpoints(last_attempt=2, checkpoints=KNOWN)).with_own(own)

    with pytest.raises(BadCheckpoint, match="put there by someone else"):
        trust.judge(SimpleNamespace(step=10, attempt=1), "e" * 64)  # type: ignore[arg-type]


@given(
    ages=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 30)), min_size=1, max_size=MAX_RECORDED + 3, unique=True)
)
def test_checkpoints_of_the_job_itself_are_always_used(ages: list[tuple[int, int]]):
    """Even if the operator missed the newest checkpoints, the job's own are used, at most with a warning."""
    ages = sorted(ages)
    committed = {step: record(step, attempt, "abc"[attempt - 1]) for attempt, step in ages}
    last_attempt, last_step = ages[-1]
    newest = committed[last_step]
    for reported in range(len(ages) + 1):
        known: list[CheckpointRecord] = []
        steps: set[int] = set()
        for attempt, step in ages[:reported]:
            steps.add(step)
            ref = CheckpointRef(step=step, attempt=attempt, digest="abc"[attempt - 1] * 64, path="p", time=0)
            known = remember(known, ref, steps)
        assert judged(known, newest, attempts=last_attempt) in ("used", "doubted")


def test_only_checkpoints_on_the_volume_stay_recorded():
    ref = CheckpointRef(step=150, attempt=2, digest="c" * 64, path="p", time=0)
    assert remember(KNOWN, ref, {100, 150}) == [record(100), record(150, 2, "c")]
    assert remember(KNOWN, None, {50, 100, 150}) == KNOWN
    again = CheckpointRef(step=50, attempt=2, digest="c" * 64, path="p", time=0)
    assert remember(KNOWN, again, {50, 100}) == [record(100), record(50, 2, "c")]


def test_records_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(names.ENV_RECORDED_CHECKPOINTS, raising=False)
    assert trust_from_environment(required=True) is None

    given_ = RecordedCheckpoints(last_attempt=2, checkpoints=tuple(KNOWN))
    monkeypatch.setenv(names.ENV_RECORDED_CHECKPOINTS, given_.model_dump_json())
    assert trust_from_environment(required=True) == Trust(given_, required=True)

    monkeypatch.setenv(names.ENV_RECORDED_CHECKPOINTS, '{"last_attempt": -1}')
    with pytest.raises(TrainerError, match="DPO_RECORDED_CHECKPOINTS: Input should be greater than or equal to 0"):
        trust_from_environment(required=False)


def test_parameters_are_those_of_the_newest_own_checkpoint(tmp_path: Path):
    assert newest_parameters(tmp_path / "none", Owner({})) == []
    a_checkpoint(tmp_path, 10)
    (a_checkpoint(tmp_path, 20) / "manifest.json").write_text("{")
    assert newest_parameters(tmp_path, Owner({})) == ["w"]
    # Of a run with other settings, or put there by someone else.
    assert newest_parameters(tmp_path, Owner({"spec.adapter.rank": 4})) == []
    assert newest_parameters(tmp_path, Owner({}, Trust(RecordedCheckpoints(last_attempt=0, checkpoints=[])))) == []
