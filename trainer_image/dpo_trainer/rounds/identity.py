"""What the policy of a round is, without loading it."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from dpo_operator.api.model import AdapterType
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data.tokens.tokenization import load_tokenizer
from dpo_trainer.prepare.record import input_digests
from dpo_trainer.pretrained.checks import end_tokens
from dpo_trainer.pretrained.files import read_json
from dpo_trainer.runtime.errors import input_not_found
from dpo_trainer.runtime.workdir import WorkDir

PROVENANCE = "dpo_provenance.json"


def exported_checkpoint(work: WorkDir, number: int) -> dict[str, Any]:
    """The checkpoint that a round exported: step, digest and so on, see reports.CheckpointRef. Raises TrainerError INPUT_NOT_FOUND."""
    path = work.round(number).export / PROVENANCE
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["checkpoint"]
        return {"step": int(found["step"]), "digest": str(found["digest"])}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise input_not_found(
            f"{path}: expected the export of round {number}, found {error}; export that round again"
        ) from error


def policy_digest(spec: DPOJobSpec, work: WorkDir, number: int) -> str:
    """SHA-256 of what a policy is, hex. number: of the round that trained it; 0 for the initial one. Raises TrainerError."""
    facts = {"model": input_digests(spec, work)["model"], "precision": spec.training.precision}
    if number:
        facts["checkpoint"] = exported_checkpoint(work, number)["digest"]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class PolicyFiles(NamedTuple):
    """Folders of a policy. model: a whole model. adapter: what a round trained on top of it; None where that is no adapter."""

    model: Path
    adapter: Path | None


def policy_files(spec: DPOJobSpec, work: WorkDir, number: int) -> PolicyFiles:
    """Where a policy is. number: as for policy_digest. Raises TrainerError INPUT_NOT_FOUND without an export of that round."""
    if not number:
        return PolicyFiles(work.model, None)
    exported_checkpoint(work, number)  # a folder without it is no export
    export = work.round(number).export
    return PolicyFiles(export, None) if spec.adapter.type is AdapterType.NONE else PolicyFiles(work.model, export)


def end_ids(work: WorkDir) -> tuple[int, ...]:
    """Ids that end an answer: the model's, and the tokenizer's. Raises TrainerError."""
    found = end_tokens(work.model, read_json(work.model / "config.json", "spec.model"), "spec.model")
    own = load_tokenizer(work.model, "spec.model").eos_token_id
    return tuple(dict.fromkeys([*found, *([] if own is None else [int(own)])]))
