"""What this container was given, asked without torch."""

from collections.abc import Mapping
from pathlib import Path


def has_gpu(environment: Mapping[str, str]) -> bool:
    """Whether the container was given a GPU of NVIDIA's, whether or not it can be used."""
    named = environment.get("NVIDIA_VISIBLE_DEVICES", "") not in ("", "void", "none")
    return named or Path("/dev/nvidia0").exists()
