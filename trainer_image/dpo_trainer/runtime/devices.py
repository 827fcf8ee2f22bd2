"""GPU detection without torch."""

from collections.abc import Mapping
from pathlib import Path

from dpo_operator.api import names


def has_gpu(environment: Mapping[str, str], devices: Path = Path("/dev")) -> bool:
    """Whether the container has a GPU assigned, even if torch can't use it. devices: folder of device files.

    A container that was given the node's fourth GPU has /dev/nvidia3 and no /dev/nvidia0.
    """
    named = environment.get("NVIDIA_VISIBLE_DEVICES", "") not in ("", "void", "none")
    return named or names.ENV_GPU_RESOURCE in environment or any(devices.glob("nvidia[0-9]*"))
