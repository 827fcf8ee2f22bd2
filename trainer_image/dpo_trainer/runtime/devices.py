"""GPU detection without torch."""

from collections.abc import Mapping
from pathlib import Path


def has_gpu(environment: Mapping[str, str]) -> bool:
    """Whether the container has an NVIDIA GPU assigned, even if torch can't use it."""
    named = environment.get("NVIDIA_VISIBLE_DEVICES", "") not in ("", "void", "none")
    return named or Path("/dev/nvidia0").exists()
