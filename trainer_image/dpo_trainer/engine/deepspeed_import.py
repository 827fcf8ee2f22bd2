"""Importing DeepSpeed without what it would compile or load."""

import logging
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dpo_trainer.runtime.libraries import quiet_libraries

_MUON = "deepspeed.runtime.zero.muon.muon_optimizer"


def import_deepspeed() -> Any:
    """DeepSpeed without its compilers, quiet."""
    import deepspeed
    from deepspeed.utils import logger as deepspeed_logger

    # An empty table says that no operator of DeepSpeed's own can be built here. Otherwise the table is made by running
    # a compiler on probes, and on CPUs a shared-memory collective is compiled when the process group is first used.
    vars(deepspeed.ops)["__compatible_ops__"] = {}
    # DeepSpeed asks of every optimizer whether it is Muon. Importing that one loads all of torch's compiler, seconds of
    # CPU time on each start, so the answer comes from a class that no optimizer has.
    if _MUON not in sys.modules:
        muon = ModuleType(_MUON)
        vars(muon)["MuonWithAuxAdam"] = type("MuonWithAuxAdam", (torch.optim.Optimizer,), {})
        sys.modules[_MUON] = muon
    collectives = vars(deepspeed.runtime.comm.coalesced_collectives)
    scatter = collectives["_torch_reduce_scatter_fn"]
    if not isinstance(scatter, partial):  # by an earlier engine of this process
        collectives["_torch_reduce_scatter_fn"] = partial(_reduce_scatter, scatter)
    deepspeed_logger.setLevel(logging.ERROR)
    quiet_libraries()
    return deepspeed


def _reduce_scatter(scatter: Callable[..., None], whole: Tensor, part: Tensor, **options: Any) -> None:
    """DeepSpeed's, but that of one rank gives what it got, in the same memory; gloo would copy every gradient for that."""
    if dist.get_world_size(options.get("group")) > 1:
        scatter(whole, part, **options)
