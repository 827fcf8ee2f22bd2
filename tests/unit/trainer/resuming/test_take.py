"""Which checkpoint of another job is taken, and what is refused with which words."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import CheckpointRecord, RecordedCheckpoints, ResumeReport
from dpo_operator.api.types import DPOJob
from dpo_trainer.batches import rankings
from dpo_trainer.batches.rankings import Ranking
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from dpo_trainer.checkpoint.trust import Trust
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.prepare.record import checkpoint_owner
from dpo_trainer.resuming.take import take
from dpo_trainer.runtime.errors import TrainerError
from tests.unit.trainer.checkpoints import a_checkpoint, loop_state
from tests.unit.trainer.place import Place


class Jobs:
    """A prepared job of 20 steps, and another one's folder on a claim."""

    def __init__(self, root: Path) -> None:
        self.place = Place(root)
        self.training = {"globalBatchSize": 1, "learningRate": 0.5}
        self.place.run(training=self.training)
        self.work = self.place.work
        self.theirs = root / "claims" / "other" / "uid-1"

    def spec(self, training: dict[str, Any] | None = None, **resume: Any) -> Any:
        document = self.place.job(training=self.training | (training or {})).model_dump(mode="json", by_alias=True)
        document["spec"]["resumeFrom"] = {"source": "pvc://other"} | resume
        return DPOJob.model_validate(document).spec

    def saved(
        self, step: int, identity: dict[str, Any] | None = None, folder: Path | None = None, **state: Any
    ) -> Path:
        """A checkpoint of the other job. identity: what is other in its settings."""
        made = a_checkpoint(folder or self.theirs / "checkpoints", step, attempt=7)
        manifest, _ = read_manifest(made)
        own = dict(checkpoint_owner(self.spec(), self.work, None).identity)
        changed = manifest.model_copy(
            update={
                "identity": own | (identity or {}),
                "adam_step": 0,
                "state": loop_state(step, total_steps=20, **state),
            }
        )
        (made / MANIFEST).write_bytes(changed.to_bytes())
        return made

    def take(self, **settings: Any) -> ResumeReport:
        found = take(self.spec(**settings), self.work, Inputs(self.theirs.parents[1]))
        assert found is not None
        return found

    def refused(self, code: ExitCode, *words: str, **settings: Any) -> None:
        with pytest.raises(TrainerError) as failure:
            self.take(**settings)
        assert failure.value.exit_code == code
        for word in words:
            assert word in str(failure.value)
        assert not layout.committed(self.work.checkpoints)
        assert not self.work.resumed.exists()

    def taken(self) -> tuple[Manifest, str]:
        ((_, folder),) = layout.committed(self.work.checkpoints)
        return read_manifest(folder)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def test_the_newest_whole_checkpoint_becomes_the_jobs_own(jobs: Jobs) -> None:
    for step in (3, 5, 9):
        jobs.saved(step)
    (jobs.theirs / "checkpoints" / "step-00000009" / MANIFEST).unlink()
    lines = [json.dumps({"step": step, "loss": 0.5}) for step in (1, 5, 6)]
    (jobs.theirs / "metrics.jsonl").write_text("\n".join(lines))
    report = jobs.take()
    manifest, digest = jobs.taken()
    theirs, their_digest = read_manifest(jobs.theirs / "checkpoints" / "step-00000005")
    assert (report.source, report.digest) == ("pvc://other/uid-1/checkpoints", their_digest)
    assert (report.checkpoint.step, report.checkpoint.attempt, report.checkpoint.digest) == (5, 1, digest)
    assert manifest.files == theirs.files
    assert jobs.work.metrics.read_text().splitlines() == lines[:2]
    assert {path.name for path in jobs.work.checkpoints.iterdir()} == {"step-00000005"}
    # The operator's record of it is what training trusts.
    record = CheckpointRecord(step=5, attempt=1, digest=digest)
    assert (
        Trust(RecordedCheckpoints(last_attempt=0, checkpoints=(record,)), required=True).judge(manifest, digest) == ""
    )
    # A second prepare reports the same, also when the other job is gone.
    shutil.rmtree(jobs.theirs)
    assert jobs.take() == report


def test_a_step_and_a_digest_can_be_named(jobs: Jobs) -> None:
    made = jobs.saved(3)
    jobs.saved(5)
    digest = read_manifest(made)[1]
    jobs.refused(ExitCode.INVALID_CONFIGURATION, "has the digest", digest, digest="0" * 64, step=3)
    jobs.refused(ExitCode.INPUT_NOT_FOUND, "no committed checkpoint of step 4, found 5, 3", step=4)
    assert jobs.take(step=3, digest=digest).checkpoint.step == 3


def test_what_differs_is_named_with_the_way_out(jobs: Jobs) -> None:
    jobs.saved(3, {"spec.training.seed": 4, "model": "other weights"})
    jobs.refused(
        ExitCode.INVALID_CONFIGURATION, "spec.training.seed: the checkpoint has 4, the job the default", "model: the checkpoint has 'other weights'",
        "Set these as the other job has them", "model.name",
    )  # fmt: skip
    shutil.rmtree(jobs.theirs)
    jobs.saved(3, evaluations=((3, 0.5),), selection_metric="eval_reward_margin")
    jobs.refused(ExitCode.INVALID_CONFIGURATION, "spec.earlyStopping.metric", "eval_reward_margin", "eval_loss")


def test_a_run_may_be_longer_than_the_other_one(jobs: Jobs) -> None:
    jobs.saved(20, finished="Trained 20 steps.")
    jobs.refused(
        ExitCode.INVALID_CONFIGURATION, "step 20 of 20 (Trained 20 steps.)", "raise spec.training.epochs or maxSteps"
    )
    jobs.take(training={"epochs": 2.0})
    state = jobs.taken()[0].state
    assert (state.finished, state.total_steps) == ("", 40)


def test_a_run_that_stopped_early_is_not_taken_up_again(jobs: Jobs) -> None:
    jobs.saved(9, finished="Stopped early.")
    jobs.refused(ExitCode.INVALID_CONFIGURATION, "step 9 of 20 (Stopped early.)")


def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(jobs: Jobs) -> None:
    shard = jobs.saved(3) / layout.shard_name(0)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    jobs.refused(ExitCode.INPUT_NOT_FOUND, "step-00000003 is not intact", "SHA-256", "spec.resumeFrom.step")
    shard.unlink()
    jobs.refused(ExitCode.INPUT_NOT_FOUND, "rank-00000.safetensors: is missing")
    # A file that is right by now is taken, also where an earlier try left a wrong one.
    shard.write_bytes(whole)
    assert jobs.take().checkpoint.step == 3


def test_folders_without_or_with_several_runs_are_refused(jobs: Jobs) -> None:
    jobs.theirs.mkdir(parents=True)
    jobs.refused(ExitCode.INPUT_NOT_FOUND, "no committed checkpoint", "status.volume.folder")
    jobs.saved(3)
    jobs.saved(3, folder=jobs.theirs.parent / "uid-2" / "checkpoints")
    jobs.refused(ExitCode.INVALID_CONFIGURATION, "2 folders (uid-1/checkpoints, uid-2/checkpoints)", "name one of them")
    assert jobs.take(source="pvc://other/uid-2").source == "pvc://other/uid-2/checkpoints"


def test_a_link_out_of_the_claim_is_not_followed(jobs: Jobs, tmp_path: Path) -> None:
    made = jobs.saved(3)
    shutil.move(made, tmp_path / "elsewhere")
    made.mkdir()
    for name in (MANIFEST, layout.shard_name(0)):
        (made / name).symlink_to(tmp_path / "elsewhere" / name)
    jobs.refused(ExitCode.INVALID_CONFIGURATION, "symbolic link that leads out of the claim")


def test_lists_of_selected_pairs_come_with_the_checkpoint(jobs: Jobs) -> None:
    kept = np.array([4, 2, 7], dtype=np.int64)
    sha256 = rankings.digest(kept)
    jobs.saved(3, selected=sha256)
    jobs.refused(
        ExitCode.INPUT_NOT_FOUND, "no folder selection beside the checkpoints; name the folder of the whole job"
    )
    ranking = Ranking(
        key="k", epoch=0, step=1, by="rewardGap", pairs=9, ranked=8, kept=3, sha256=sha256, lowest=None, highest=None, wrong_sign=0.0, not_finite=0
    )  # fmt: skip
    # A list of another epoch is not the one that the checkpoint was trained on.
    rankings.write(jobs.theirs / "selection", ranking.model_copy(update={"sha256": "0" * 64}), kept)
    jobs.refused(ExitCode.INPUT_NOT_FOUND, f"the list of pairs with the SHA-256 {sha256}")
    rankings.write(jobs.theirs / "selection", ranking, kept)
    (jobs.theirs / "selection" / "epoch-0.tmp").write_text("")
    jobs.take()
    assert {path.name for path in jobs.work.selection.iterdir()} == {"epoch-0.npy", "epoch-0.json"}
    assert rankings.has(jobs.work.selection, sha256)
