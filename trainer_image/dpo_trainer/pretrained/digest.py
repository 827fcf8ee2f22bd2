"""Digest of a model's configuration and weights, and of the adapter that it starts with."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from dpo_trainer.pretrained import adapters
from dpo_trainer.runtime.files import sha256


def model_digest(folder: Path, weights: Mapping[str, str] | None = None) -> str:
    """SHA-256 over a model's configuration and weights, hex; with an adapter in its folder, over that one's too.

    weights: SHA-256 of each weight file; None reads the files, which takes minutes.
    """
    digests = dict(weights) if weights else _read(folder)
    facts = {"config": _read_config(folder / "config.json"), "weights": digests}
    # Its alpha and the like decide what the policy is, too.
    if (adapter := folder / adapters.FOLDER / adapters.CONFIG).is_file():
        facts["adapter"] = _read_config(adapter)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read_config(file: Path) -> str:
    return json.dumps(json.loads(file.read_text(encoding="utf-8")), sort_keys=True)


def _read(folder: Path) -> dict[str, str]:
    """SHA-256 of the weight files by relative name, also of an adapter in a folder of its own."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*.safetensors"))}
