"""Trust check: was a checkpoint committed by this job? Uses the digests recorded in the DPOJob status.

Anyone with write access to the volume could plant a checkpoint with valid digests. It could run no code, but the job would use
its weights and optimizer state. So its digest must be recorded, or it must be newer than the last record, because a node can
die before it reports a checkpoint.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpo_operator.api import names
from dpo_operator.api.reports import MAX_RECORDED, CheckpointRecord, CheckpointRef, RecordedCheckpoints
from dpo_trainer.checkpoint.identity import differences, mismatch_message
from dpo_trainer.checkpoint.layout import committed
from dpo_trainer.checkpoint.manifest import Manifest, read_manifest
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.runtime.errors import invalid_configuration


@dataclass(frozen=True)
class Trust:
    """Known checkpoints of a job, from other sources than the volume.

    required: accept recorded digests only. own: checkpoints that this attempt committed or resumed from.
    """

    recorded: RecordedCheckpoints
    required: bool = False
    own: tuple[CheckpointRecord, ...] = ()

    @property
    def records(self) -> tuple[CheckpointRecord, ...]:
        """One record for each step; the attempt's own records take precedence."""
        return tuple({record.step: record for record in (*self.recorded.checkpoints, *self.own)}.values())

    def judge(self, manifest: Manifest, digest: str) -> str:
        """Why a checkpoint may be used only with a warning; empty when it is recorded. Raises BadCheckpoint."""
        records = self.records
        if any(record.step == manifest.step and record.digest == digest for record in records):
            return ""
        expected = [record.digest for record in records if record.step == manifest.step]
        found = f"found {digest[:12]}… of attempt {manifest.attempt}"
        if not self._may_be_unrecorded(manifest):
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
        return f"its digest {digest[:12]}… was not recorded; attempt {manifest.attempt} ended before reporting it to the operator"

    def with_own(self, own: Iterable[CheckpointRef]) -> "Trust":
        """A copy with the checkpoints that this attempt committed or resumed from."""
        return replace(self, own=tuple(_record(ref) for ref in own))

    def _may_be_unrecorded(self, manifest: Manifest) -> bool:
        """Whether an earlier attempt may have committed it although no record of it is here."""
        if manifest.attempt > self.recorded.last_attempt:
            return False
        age = (manifest.attempt, manifest.step)
        if all(age > record.age for record in self.records):
            return True
        # A full record list may have dropped its oldest entries. `own` is never cut.
        recorded = self.recorded.checkpoints
        return len(recorded) >= MAX_RECORDED and all(age < record.age for record in recorded)


@dataclass(frozen=True)
class Owner:
    """The job that a checkpoint must belong to. identity: see identity.py. trust: None accepts any intact one."""

    identity: Mapping[str, Any]
    trust: Trust | None = None

    def judge(self, manifest: Manifest, digest: str) -> str:
        """Checks the settings, then as Trust.judge. Raises BadCheckpoint."""
        if problem := mismatch_message(differences(manifest.identity, dict(self.identity))):
            raise BadCheckpoint(problem)
        return self.trust.judge(manifest, digest) if self.trust else ""


def newest_parameters(root: Path, owner: Owner) -> list[str]:
    """Names of the trained parameters in the newest checkpoint that is the owner's; empty without one. Raises OSError.

    Its shards are not read, so it may turn out not to be intact.
    """
    for _, folder in committed(root):
        try:
            manifest, digest = read_manifest(folder)
            owner.judge(manifest, digest)
        except BadCheckpoint:
            continue  # whoever loads it says why
        return sorted(manifest.parameters)
    return []


def trust_from_environment(*, required: bool) -> Trust | None:
    """The records that the operator passed to this pod; None in a local run, where the volume is the user's own.

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
    """Records of the checkpoints that are still there, oldest first. committed: new checkpoint, or None.

    on_volume: steps of the checkpoints there. A refused checkpoint stays recorded while it is there, so that it is refused again.
    """
    records = {record.step: record for record in before if record.step in on_volume}
    if committed is not None:
        records[committed.step] = _record(committed)
    return sorted(records.values(), key=lambda record: record.age)[-MAX_RECORDED:]


def _record(ref: CheckpointRef) -> CheckpointRecord:
    return CheckpointRecord(step=ref.step, attempt=ref.attempt, digest=ref.digest)
