"""Digest of a model's configuration and weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from dpo_trainer.runtime.files import sha256


def model_digest(folder: Path, weights: Mapping[str, str] | None = None) -> str:
    """SHA-256 over a model's configuration and weights, hex.

    weights: SHA-256 of each weight file; None reads the files, which takes minutes.
    """
    digests = dict(weights) if weights else _read(folder)
    config = json.dumps(json.loads((folder / "config.json").read_text()), sort_keys=True)
    facts = {"config": config, "weights": digests}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read(folder: Path) -> dict[str, str]:
    """SHA-256 of the weight files by relative name, also of an adapter in a folder of its own."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*.safetensors"))}
