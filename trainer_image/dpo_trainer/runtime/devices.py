"""GPUs and their driver, without torch."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from dpo_operator.api import names


def has_gpu(environment: Mapping[str, str], devices: Path = Path("/dev")) -> bool:
    """Whether the container has a GPU assigned, even if torch can't use it. devices: folder of device files.

    A container that was given the node's fourth GPU has /dev/nvidia3 and no /dev/nvidia0.
    """
    named = environment.get("NVIDIA_VISIBLE_DEVICES", "") not in ("", "void", "none")
    return named or names.ENV_GPU_RESOURCE in environment or any(devices.glob("nvidia[0-9]*"))


# Each micro-batch has another number of tokens, so fixed blocks of a GPU's memory would leave gaps that nothing fits into. Set for each process with a
# GPU, but not where the job configures torch's allocator itself, under the name of today or of older versions.
EXPANDABLE = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
ALLOCATOR_NAMES = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"}


def gpus_of_process(environment: Mapping[str, str], local_rank: int, count: int) -> str:
    """CUDA_VISIBLE_DEVICES of a process that has some of the container's GPUs for itself. local_rank: its number in the container. count: GPUs of each."""
    named = [device for device in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    mine = range(local_rank * count, (local_rank + 1) * count)
    return ",".join(named[mine.start : mine.stop] if named else map(str, mine))


# The oldest driver for Linux on which programs built with any minor version of a CUDA run (NVIDIA's CUDA Compatibility).
OLDEST_DRIVER = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}
# What the kernel's module says of itself, and libraries with which newer programs run on an older driver.
DRIVER, COMPATIBILITY = Path("/proc/driver/nvidia/version"), Path("/usr/local/cuda/compat")


def driver_problem(cuda: str | None, driver: Path = DRIVER, compatibility: Path = COMPATIBILITY) -> str:
    """Why NVIDIA's driver of this node can't run this image's torch, with both versions; empty when it can, or when that is not known.

    cuda: see cuda_of_torch.
    """
    try:
        found = re.search(r"Module\s.*?(\d{3,4}(?:\.\d+){1,2})", driver.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    needed = OLDEST_DRIVER.get(int(cuda.partition(".")[0])) if cuda else None
    if found is None or needed is None or any(compatibility.glob("libcuda.so*")):
        return ""
    if tuple(map(int, found[1].split("."))) >= needed:
        return ""
    major = int(str(cuda).partition(".")[0])
    older = [version for version in OLDEST_DRIVER if version < major]
    return (
        f"expected an NVIDIA driver from {_text(needed)} on, which this image's torch for CUDA {cuda} needs, found {found[1]} on this node. Update the "
        f"node's driver, or build the trainer's image with torch for CUDA {max(older, default=major)}, which runs on {_text(OLDEST_DRIVER[max(older, default=major)])}"
    )


def cuda_of_torch() -> str | None:
    """Version of CUDA that the installed torch was built for, such as 13.2; None without one. torch is not imported, which takes seconds."""
    spec = find_spec("torch")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        try:
            text = (Path(folder) / "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        if found := re.search(r"^cuda\b.*=\s*['\"](\d+\.\d+)", text, re.MULTILINE):
            return found[1]
    return None


def _text(version: tuple[int, ...]) -> str:
    """A driver's version as NVIDIA writes it: the last number has two digits."""
    *first, last = version
    return ".".join([*map(str, first), f"{last:02}"])
