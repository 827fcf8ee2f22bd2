"""What a model is known by: its configuration and its weights."""

import hashlib
import json
from pathlib import Path

from dpo_trainer.runtime.files import sha256


def model_digest(folder: Path, weights: dict[str, str] | None = None) -> str:
    """SHA-256 over a model's configuration and weights, hex.

    weights: SHA-256 of each weight file, where they are known already; reading them again takes minutes.
    """
    digests = weights or {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    config = json.dumps(json.loads((folder / "config.json").read_text()), sort_keys=True)
    facts = {"config": config, "weights": digests}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
