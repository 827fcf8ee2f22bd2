"""This process's place among the ranks, and joining the process group."""

import logging
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.devices import has_gpu
from dpo_trainer.runtime.errors import TrainerError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """This process's rank and device."""

    rank: int
    world_size: int
    device: torch.device


def choose_device(wanted: str, *, local_rank: int) -> torch.device:
    """Device for `training.device`.

    auto never falls back silently: GPUs that the container has but CUDA can't use are an error.
    Raises TrainerError NO_ACCELERATOR.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise TrainerError(
                ExitCode.NO_ACCELERATOR,
                f"expected a GPU for local rank {local_rank}, found {torch.cuda.device_count()}; check gpusPerNode",
            )
        return torch.device("cuda", local_rank)
    if wanted == "cuda" or has_gpu(os.environ):
        raise TrainerError(
            ExitCode.NO_ACCELERATOR,
            "expected a GPU, found none that CUDA can use; check the node's driver and the image's CUDA version. For amd.com/gpu the image's torch must be "
            "built for ROCm; GPUs that torch does not know as CUDA devices, such as Intel's, can't train",
        )
    log.warning("NO GPU in this container: training on the CPU, which only suits very small models")
    return torch.device("cpu")


def uses_cuda() -> bool:
    """Whether this process has a CUDA context."""
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # not annotated in torch


# How long a rank waits for the others, seconds: until all have connected; in a collective until training begins, where one rank may read a model
# from a slow volume; and in a collective of training. The operator's own time-outs come first (failurePolicy).
CONNECT_SECONDS, START_SECONDS, RUN_SECONDS = 1800.0, 7200.0, 1800.0


def join_world(wanted_device: str) -> World:
    """Connect this process to the other ranks as torchrun's environment variables say; without them it is a world of one rank."""
    for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, alone)  # DeepSpeed also reads them
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = choose_device(wanted_device, local_rank=int(os.environ["LOCAL_RANK"]))
    # Otherwise DeepSpeed imports every vendor's module to detect the device.
    os.environ["DS_ACCELERATOR"] = device.type
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # DeepSpeed would run numactl to count this machine's devices, in every backward pass.
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
        # By default MKL multiplies narrow matrices in an order that depends on where they lie in memory (docs/checkpoints.md).
        os.environ.setdefault("MKL_CBWR", "AUTO")
    timeout = timedelta(seconds=CONNECT_SECONDS)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world_size == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]  # public, but missing in torch's list of exported names
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    else:
        # With its device NCCL connects now, and an error shows here and not in the first collective.
        dist.init_process_group(backend, timeout=timeout, device_id=device if device.type == "cuda" else None)
    _wait_in_collectives(START_SECONDS)
    return World(rank, world_size, device)


def begin_training() -> None:
    """From now on a collective waits for the other ranks no longer than RUN_SECONDS."""
    _wait_in_collectives(RUN_SECONDS)


def _wait_in_collectives(seconds: float) -> None:
    dist.set_timeout(timedelta(seconds=seconds))
