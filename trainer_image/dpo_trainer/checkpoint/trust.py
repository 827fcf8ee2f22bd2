"""Is a checkpoint one that this job committed? The operator hands back the digests that it was told of.

Whoever can write to the volume can put a checkpoint there, with digests that fit. Nothing of it is ever run, but weights
and optimizer state would be its. So a digest must be one that the operator recorded, or belong to a checkpoint that
could have been committed after the operator last heard of one: a node may die before the news is out.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from dpo_operator.api import names
from dpo_operator.api.reports import MAX_RECORDED, CheckpointRecord, CheckpointRef, RecordedCheckpoints
from dpo_trainer.checkpoint.identity import differences, other_settings
from dpo_trainer.checkpoint.manifest import Manifest
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.runtime.errors import invalid_configuration


@dataclass(frozen=True)
class Trust:
    """What is known of a job's checkpoints from elsewhere than the volume.

    required: only a recorded digest will do. own: what this attempt itself committed, or found good and went on from.
    """

    recorded: RecordedCheckpoints
    required: bool = False
    own: tuple[CheckpointRecord, ...] = ()

    @property
    def records(self) -> tuple[CheckpointRecord, ...]:
        """All that is known, one by step; of two the attempt's own."""
        return tuple({record.step: record for record in (*self.recorded.checkpoints, *self.own)}.values())

    def judge(self, manifest: Manifest, digest: str) -> str:
        """Why a checkpoint may be used only with a warning; empty when it is recorded. Raises BadCheckpoint."""
        records = self.records
        if any(record.step == manifest.step and record.digest == digest for record in records):
            return ""
        expected = [record.digest for record in records if record.step == manifest.step]
        found = f"found {digest[:12]}… of attempt {manifest.attempt}"
        if not self._can_be_honest(manifest):
            if expected:
                raise BadCheckpoint(
                    f"expected the recorded digest {expected[0][:12]}…, {found}: it was changed afterwards"
                )
            known = f"step {max(r.age for r in records)[1]} was recorded last" if records else "none was recorded"
            raise BadCheckpoint(
                f"expected a recorded digest, {found}: {known}, and the last attempt was number {self.recorded.last_attempt}, so it "
                "was put there by someone else"
            )
        if self.required:
            raise BadCheckpoint(f"expected a recorded digest (checkpoint.requireRecordedDigest), {found}")
        return f"its digest {digest[:12]}… was not recorded; attempt {manifest.attempt} ended before the operator heard of it"

    def knowing(self, own: Iterable[CheckpointRef]) -> "Trust":
        """With the checkpoints that this attempt committed itself or went on from."""
        records = (CheckpointRecord(step=ref.step, attempt=ref.attempt, digest=ref.digest) for ref in own)
        return replace(self, own=tuple(records))

    def _can_be_honest(self, manifest: Manifest) -> bool:
        """Whether an earlier attempt can have committed it without a record of it being here."""
        if manifest.attempt > self.recorded.last_attempt:
            return False
        age = (manifest.attempt, manifest.step)
        if all(age > record.age for record in self.records):
            return True
        # A full list has lost its oldest ones. Only the one that was handed back can be full: no own one is ever lost.
        handed_back = self.recorded.checkpoints
        return len(handed_back) >= MAX_RECORDED and all(age < record.age for record in handed_back)


@dataclass(frozen=True)
class Owner:
    """The job that a checkpoint must be of. identity: see identity.py. trust: None takes any that is whole."""

    identity: Mapping[str, Any]
    trust: Trust | None = None

    def judge(self, manifest: Manifest, digest: str) -> str:
        """As Trust.judge does, also about the settings. Raises BadCheckpoint."""
        if problem := other_settings(differences(manifest.identity, dict(self.identity))):
            raise BadCheckpoint(problem)
        return self.trust.judge(manifest, digest) if self.trust else ""


def trust_from_environment(*, required: bool) -> Trust | None:
    """What the operator gave this pod; None in a local run, where the volume is the user's own.

    Raises TrainerError INVALID_CONFIGURATION.
    """
    text = os.environ.get(names.ENV_RECORDED_CHECKPOINTS)
    if text is None:
        return None
    try:
        return Trust(RecordedCheckpoints.model_validate_json(text), required)
    except ValidationError as error:
        raise invalid_configuration(f"{names.ENV_RECORDED_CHECKPOINTS}: {error.errors()[0]['msg']}") from error


def remember(
    before: Iterable[CheckpointRecord], committed: CheckpointRef | None, on_volume: Collection[int]
) -> list[CheckpointRecord]:
    """Records of the checkpoints that are still there, oldest first. committed: the newest, if there is news.

    on_volume: their steps. One that was refused stays recorded while it is there, so that it is refused again.
    """
    records = {record.step: record for record in before if record.step in on_volume}
    if committed is not None:
        records[committed.step] = CheckpointRecord(
            step=committed.step, attempt=committed.attempt, digest=committed.digest
        )
    return sorted(records.values(), key=lambda record: record.age)[-MAX_RECORDED:]
