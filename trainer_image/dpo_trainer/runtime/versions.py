"""Versions of this project and its libraries, for checkpoints and model cards."""

import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("torch", "deepspeed", "transformers")


def library_versions() -> dict[str, str]:
    """Version of each library that affects numerical results, by distribution name."""
    return {name: version(name) for name in LIBRARIES}


def own_version() -> str:
    """This project's version; "source" without package metadata, as in the image."""
    try:
        return version("dpo-operator")
    except PackageNotFoundError:
        return "source"


def code_digest(packages: Iterable[str]) -> str:
    """SHA-256 over the source of packages of the trainer, hex: tells two builds apart that have one version. Raises OSError."""
    root = Path(__file__).resolve().parents[1]
    files = sorted(file for package in packages for file in (root / package).rglob("*.py"))
    parts = [(file.relative_to(root).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
