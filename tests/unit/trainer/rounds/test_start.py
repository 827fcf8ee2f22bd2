"""Where a round's training starts: the exported checkpoint of the round before and no other, under the records of its own round."""

import json
from pathlib import Path

import numpy as np
import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import CheckpointRecord, CheckpointRef, RecordedCheckpoints
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_trainer.checkpoint.folder import CheckpointFolder
from dpo_trainer.checkpoint.manifest import read_manifest, reference
from dpo_trainer.checkpoint.trust import Trust
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.rounds.start import check_generator, checked_pairs, generator_logps, start_of
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir
from tests.unit.trainer.checkpoints import a_checkpoint
from tests.unit.trainer.tiny import tiny_model

pytestmark = pytest.mark.unit


def a_spec(precision: str = "fp32") -> DPOJobSpec:
    judge = {"type": "builtin", "builtin": {"name": "length", "tokens": 3}}
    spec = {
        "model": {"name": "m"}, "data": {"train": {"source": "d"}}, "iterative": {"judge": judge}, "training": {"precision": precision},
    }  # fmt: skip
    return DPOJob.model_validate({"metadata": {"name": "j"}, "spec": spec}).spec


@pytest.fixture
def work(tmp_path: Path) -> WorkDir:
    """The second round of a job whose first one ended at step 5 of attempt 3."""
    work = WorkDir(tmp_path)
    tiny_model(work.model)
    first = work.round(1)
    ids = np.array([1, 2], dtype=np.int32)
    PairDataset.from_pairs([TokenPair(ids, ids, ids[:1], 0)]).save(first.train_data)
    folder = a_checkpoint(first.checkpoints, 5, attempt=3)
    exported(first, read_manifest(folder)[1])
    return work.round(2)


def exported(leg: WorkDir, digest: str) -> None:
    leg.export.mkdir(parents=True, exist_ok=True)
    (leg.export / "dpo_provenance.json").write_text(json.dumps({"checkpoint": {"step": 5, "digest": digest}}))


def test_the_first_round_starts_from_the_initial_model(work: WorkDir):
    assert start_of(a_spec(), work.round(1), None) is None
    assert start_of(a_spec(), work.round(0), None) is None


def test_the_exported_checkpoint_and_no_other(work: WorkDir):
    start = start_of(a_spec(), work, None)
    assert start is not None
    assert (start.record.step, start.record.attempt) == (5, 3)
    exported(work.round(1), "f" * 64)
    with pytest.raises(TrainerError, match="not the one that was exported") as failure:
        start_of(a_spec(), work, None)
    assert failure.value.exit_code == ExitCode.VOLUME_ERROR
    (work.round(1).export / "dpo_provenance.json").unlink()
    with pytest.raises(TrainerError, match="expected the export of round 1"):
        start_of(a_spec(), work, None)


def test_records_are_divided_by_the_attempts_of_the_rounds(work: WorkDir):
    before = start_of(a_spec(), work, None)
    assert before is not None
    own = CheckpointRecord(step=5, attempt=4, digest="a" * 64)
    trust = Trust(RecordedCheckpoints(last_attempt=4, checkpoints=(before.record, own)), required=True)
    start = start_of(a_spec(), work, trust)
    assert start is not None
    assert start.owner.trust is not None
    assert start.owner.trust.recorded.checkpoints == (before.record,)
    assert start.owner.trust.judge(start.manifest, start.digest) == ""
    mine = start.trust_of_round(trust)
    assert mine is not None
    assert mine.recorded.checkpoints == (own,)


def test_the_start_is_reported_with_the_rounds_own_checkpoints(work: WorkDir):
    start = start_of(a_spec(), work, None)
    assert start is not None
    folder = CheckpointFolder(work.checkpoints)
    folder.keep(start.record)
    made = a_checkpoint(work.checkpoints, 5, attempt=4)
    ref = reference(work.checkpoints, *read_manifest(made))
    assert ref.path == "rounds/0002/checkpoints/step-00000005"
    records = folder.records([start.record], CheckpointRef.model_validate(ref.model_dump()))
    assert [(record.step, record.attempt) for record in records] == [(5, 3), (5, 4)]


def test_log_probs_of_generator_and_trainer_must_agree(work: WorkDir):
    generated, tokens = np.full((4, 2), -10.0), np.full((4, 2), 20)
    assert check_generator(a_spec(), work.round(1), generated, generated + 0.01, tokens) < 1e-3
    with pytest.raises(TrainerError, match=r"by 0\.0025 nats a token, and 0\.001 are allowed") as failure:
        check_generator(a_spec(), work.round(1), generated, generated + 0.05, tokens)
    assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION
    # bf16 rounds more, and NaN never agrees.
    assert check_generator(a_spec("bf16"), work, generated, generated + 0.05, tokens) > 1e-3
    with pytest.raises(TrainerError, match="checkpoint of round 1"):
        check_generator(a_spec("bf16"), work, generated, generated * np.nan, tokens)


def test_pairs_of_the_data_are_not_compared(work: WorkDir):
    logps = np.full((200, 2), -1.0)
    logps[::2] = np.nan
    some = checked_pairs(logps)
    assert len(some) == 64
    assert all(number % 2 for number in some)
    assert not len(checked_pairs(np.full((3, 2), np.nan)))
    work.generator_logps.parent.mkdir(parents=True)
    np.save(work.generator_logps, logps)
    assert generator_logps(work, 200).shape == (200, 2)
    with pytest.raises(TrainerError, match="judge this round again"):
        generator_logps(work, 199)
