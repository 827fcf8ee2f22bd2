"""prepared.json: what prepare made, from what, with which settings; the last file that it writes."""

import hashlib
import json
import logging
import os
from typing import IO, Any

from dpo_operator.api.reports import DatasetReport
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data import mixture
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.pretrained import files as modelfiles
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration
from dpo_trainer.runtime.files import commit
from dpo_trainer.runtime.workdir import WorkDir

log = logging.getLogger(__name__)

# Raised when what prepare writes changes, so that older folders are made anew.
VERSION = 2


def spec_hash(spec: DPOJobSpec) -> str:
    """SHA-256 over the settings that decide what prepare writes, hex.

    Defaults are left out: a later version, which knows more settings, finds the same hash.
    """
    parts = {
        "version": VERSION,
        "model": spec.model.model_dump(
            mode="json", include={"name", "revision", "chat_template"}, exclude_defaults=True
        ),
        "data": spec.data.model_dump(mode="json", exclude_defaults=True),
        "seed": spec.training.seed if mixture.is_random(spec.data) else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def finished(work: WorkDir, key: str) -> DatasetReport | None:
    """Report of an earlier run with the same settings whose files are intact; None when there is none."""
    try:
        made = json.loads(work.prepared.read_text(encoding="utf-8"))
        if made["spec_hash"] != key:
            return None
        digests = made["model"]["weights"] | made["model"]["files"]
        if modelfiles.sha256_of(work.model, digests) != digests:
            log.warning("the model's files changed since they were prepared; preparing again")
            return None
        for name, folder in (("train", work.train_data), ("eval", work.eval_data)):
            facts = made["data"][name]
            if facts is not None:
                dataset = PairDataset.open(folder)
                if dataset.digest != facts["digest"] or not dataset.is_intact():
                    log.warning("the %s tokens changed since they were prepared; preparing again", name)
                    return None
        return DatasetReport.model_validate(made["report"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, TrainerError) as error:
        log.warning("%s is not whole (%s); preparing again", work.prepared, error)
        return None


def refuse_other_run(work: WorkDir, key: str) -> None:
    """Checkpoints belong to the data that they were made with: never prepare other data beside them."""
    if not work.prepared.exists() or not work.checkpoints.is_dir() or not any(work.checkpoints.iterdir()):
        return
    try:
        other = json.loads(work.prepared.read_text(encoding="utf-8")).get("spec_hash") != key
    except (ValueError, AttributeError):
        return
    if other:
        raise invalid_configuration(
            f"{work.root} holds checkpoints of a run with another model or other data; use another folder, or delete this one"
        )


def write(work: WorkDir, value: dict[str, Any]) -> None:
    """Commit prepared.json: after this, the folder counts as prepared."""
    commit(work.prepared, json.dumps(value, indent=1).encode())


def sync(file: IO[str]) -> None:
    """Make what was written survive a power cut."""
    file.flush()
    os.fsync(file.fileno())


def known_digests(work: WorkDir) -> dict[str, str] | None:
    """SHA-256 of the weight files as prepare recorded them, or None."""
    try:
        weights: dict[str, str] = json.loads(work.prepared.read_text())["model"]["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return weights
