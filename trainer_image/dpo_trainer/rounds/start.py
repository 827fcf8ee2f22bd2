"""The policy that a round's training starts from: the checkpoint that the round before exported."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dpo_operator.api.model import AdapterType
from dpo_operator.api.reports import CheckpointRecord
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.checkpoint.layout import folder_name
from dpo_trainer.checkpoint.manifest import Manifest, read_manifest
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.checkpoint.trust import Owner, Trust
from dpo_trainer.prepare.record import Prepared, checkpoint_owner
from dpo_trainer.rounds.identity import exported_checkpoint
from dpo_trainer.runtime.errors import invalid_configuration, volume_error
from dpo_trainer.runtime.workdir import WorkDir

# Allowed difference of log-probs between generator and trainer, nats a token: in float32 only the order of sums differs.
_EXACT, _ROUNDED = 1e-3, 0.03
# Pairs of which the log-probs are compared.
CHECKED_PAIRS = 64


@dataclass(frozen=True)
class Start:
    """A checkpoint of the round before. owner: what it must belong to, which whoever loads it checks."""

    folder: Path
    manifest: Manifest
    digest: str
    owner: Owner

    @property
    def record(self) -> CheckpointRecord:
        """Its identity, as the operator keeps it."""
        return CheckpointRecord(step=self.manifest.step, attempt=self.manifest.attempt, digest=self.digest)

    def reference_digest(self, model: str) -> str:
        """Digest of this policy as a reference, hex. model: of the model that it was trained from."""
        return hashlib.sha256(f"{model}/{self.digest}".encode()).hexdigest()

    def trust_of_round(self, trust: Trust | None) -> Trust | None:
        """The records that are of the round that starts here: attempts go on rising, so later ones are."""
        return _restricted(trust, lambda record: record.attempt > self.manifest.attempt)


def start_of(spec: DPOJobSpec, work: WorkDir, trust: Trust | None) -> Start | None:
    """Where a round's training starts; None for the initial model. work: the round's leg. trust: see checkpoint.trust.

    Raises TrainerError INPUT_NOT_FOUND without an export of the round before, VOLUME_ERROR when its checkpoint is not the exported one.
    """
    if work.number <= 1:
        return None
    before = work.round(work.number - 1)
    exported = exported_checkpoint(work, before.number)
    folder = before.checkpoints / folder_name(exported["step"])
    try:
        manifest, digest = read_manifest(folder)
        if digest != exported["digest"]:
            raise BadCheckpoint("it is not the one that was exported, whose policy generated the answers")
        own = _restricted(trust, lambda record: record.attempt <= manifest.attempt)
        owner = checkpoint_owner(spec, before, own)
    except (BadCheckpoint, OSError) as error:
        raise volume_error(
            f"{folder}: round {work.number} trains from this checkpoint, which can't be used: {error}. Restore it from a backup"
        ) from error
    return Start(folder, manifest, digest, owner)


def _restricted(trust: Trust | None, wanted: Callable[[CheckpointRecord], bool]) -> Trust | None:
    if trust is None:
        return None
    records = tuple(record for record in trust.recorded.checkpoints if wanted(record))
    return replace(trust, recorded=trust.recorded.model_copy(update={"checkpoints": records}))


def generator_logps(work: WorkDir, pairs: int) -> np.ndarray:
    """Log-probs that the generator gave the answers of a round's pairs: float64 [pairs, 2], nats; NaN for pairs of data.train.

    Raises TrainerError VOLUME_ERROR.
    """
    try:
        found: np.ndarray = np.load(work.generator_logps, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise volume_error(
            f"{work.generator_logps}: expected log-probs, found {error}; judge this round again"
        ) from error
    if found.shape != (pairs, 2):
        raise volume_error(
            f"{work.generator_logps}: expected log-probs of {pairs} pairs, found shape {found.shape}; judge this round again"
        )
    return found


def checked_pairs(logps: np.ndarray) -> np.ndarray:
    """Numbers of the pairs of which the log-probs are compared, spread evenly; none where all pairs are of data.train: int64."""
    known = np.flatnonzero(np.isfinite(logps).all(axis=1))
    return known[np.unique(np.linspace(0, len(known) - 1, min(CHECKED_PAIRS, len(known))).round().astype(np.int64))]


def check_generator(
    spec: DPOJobSpec, work: WorkDir, generated: np.ndarray, trained: np.ndarray, tokens: np.ndarray
) -> float:
    """Compare log-probs of sampled answers under the generator and under the trainer before its first step; returns nats a token.

    generated, trained: float64 [pairs, 2], nats. tokens: of the answers, [pairs, 2]. Raises TrainerError INVALID_CONFIGURATION when they differ.
    """
    difference = float(np.abs(generated - trained).sum() / max(1, int(tokens.sum())))
    allowed = _EXACT if _is_exact(spec, work) else _ROUNDED
    if not difference <= allowed:
        start = f"the checkpoint of round {work.number - 1}" if work.number > 1 else "the initial model"
        raise invalid_configuration(
            f"round {work.number}: the trainer and the generator disagree about the generator's own answers by {difference:.2g} nats a token, and "
            f"{allowed:g} are allowed, so the policy that answered is not the one that training starts from ({start}). Either its checkpoint is "
            "another one, or the prompt's tokens are (chat template, BOS), or one of the two computes the model wrongly; generate this round again"
        )
    return difference


def _is_exact(spec: DPOJobSpec, work: WorkDir) -> bool:
    """Whether generator and trainer have the same float32 weights: an export of all weights is rounded to the model's own dtype."""
    if spec.training.precision != "fp32" or spec.adapter.type is AdapterType.QLORA:
        return False
    if spec.adapter.type is AdapterType.LORA or work.number <= 1:
        return True
    try:
        return set(Prepared.read(work).model.dtypes) == {"F32"}
    except (OSError, ValueError):
        return False
