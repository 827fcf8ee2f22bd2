"""GPU detection without torch."""

from collections.abc import Mapping
from pathlib import Path

from dpo_operator.api import names


def has_gpu(environment: Mapping[str, str]) -> bool:
    """Whether the container has a GPU assigned, even if torch can't use it."""
    named = environment.get("NVIDIA_VISIBLE_DEVICES", "") not in ("", "void", "none")
    return named or names.ENV_GPU_RESOURCE in environment or Path("/dev/nvidia0").exists()
