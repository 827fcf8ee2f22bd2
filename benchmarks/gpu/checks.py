"""What a part of the check finds: numbers with limits."""

import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from dpo_operator.cli.parent import request_signal

# Lengths of prompt, chosen and rejected answer in tokens: of HH-RLHF pairs, every so many of the first 2,000.
LENGTHS = (
    (105, 59, 77), (42, 61, 12), (214, 17, 94), (77, 120, 43), (310, 33, 21), (18, 96, 102), (150, 74, 8), (63, 28, 55),
    (421, 52, 70), (36, 140, 118), (95, 11, 39), (188, 85, 61), (27, 47, 160), (260, 39, 14), (59, 68, 88), (133, 104, 26),
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """A number and what it has to be. limit: None for a number that is only shown. least: the limit is the least, not the most."""

    part: str
    name: str
    value: float | str
    limit: float | None = None
    least: bool = False

    @property
    def passed(self) -> bool:
        """Whether it is within its limit."""
        if self.limit is None or isinstance(self.value, str):
            return self.limit is None
        return self.value >= self.limit if self.least else self.value <= self.limit

    def line(self) -> str:
        """The check as a line of JSON."""
        return json.dumps(asdict(self) | {"passed": self.passed})


@dataclass(frozen=True)
class Setting:
    """Where and how large. tiny: sizes for a test on a CPU. folder: for models and runs."""

    device: str
    tiny: bool
    folder: str

    @property
    def precision(self) -> str:
        """bf16 on GPUs; on CPUs fp32, where all kernels are exact."""
        return "bf16" if self.device == "cuda" else "fp32"


def synchronize(device: str) -> None:
    """Wait for a GPU's work."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(device: str, work: Callable[[], Any]) -> float:
    """Wall time of some work, to its end on the device."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, as JSON, from a fork of this process as a world of one rank: process groups and a GPU's memory end with it.

    This process must not have used a GPU before. Raises RuntimeError with the traceback when the function fails.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    if (child := os.fork()) == 0:
        request_signal(signal.SIGKILL, parent)  # a part that is out of time leaves no process on the GPU
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        try:
            text = json.dumps([True, function(*arguments)])
        except BaseException:
            text = json.dumps([False, traceback.format_exc()])
        with os.fdopen(writing, "w") as file:
            file.write(text)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    if not text:
        raise RuntimeError("the process ended without an answer")
    good, value = json.loads(text)
    if not good:
        raise RuntimeError(value)
    return value
