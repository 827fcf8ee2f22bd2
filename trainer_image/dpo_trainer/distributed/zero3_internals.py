"""DeepSpeed's internals: every name outside its documented interface that the trainer relies on is used in this module alone.

A new version of DeepSpeed may rename any of them. tests/numerics/engine/test_zero3_internals.py lists the names and the version.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpo_trainer.runtime.libraries import quiet_libraries

MUON = "deepspeed.runtime.zero.muon.muon_optimizer"


def import_deepspeed() -> Any:
    """The module deepspeed, with JIT compilation disabled and its log quiet."""
    import deepspeed
    from deepspeed.utils import logger as deepspeed_logger

    # An empty op table disables JIT-compiled ops. Otherwise DeepSpeed fills the table by running a compiler on probes, and on CPUs
    # it compiles a shared-memory collective when the process group is first used.
    vars(deepspeed.ops)["__compatible_ops__"] = {}
    # DeepSpeed checks whether each optimizer is Muon. Importing Muon loads all of torch's compiler, seconds of CPU time on each
    # start. With this stub the isinstance checks are False.
    if MUON not in sys.modules:
        muon = ModuleType(MUON)
        vars(muon)["MuonWithAuxAdam"] = type("MuonWithAuxAdam", (torch.optim.Optimizer,), {})
        sys.modules[MUON] = muon
    collectives = vars(deepspeed.runtime.comm.coalesced_collectives)
    scatter = collectives["_torch_reduce_scatter_fn"]
    if not isinstance(scatter, partial):  # already replaced by an earlier engine of this process
        collectives["_torch_reduce_scatter_fn"] = partial(_reduce_scatter, scatter)
    deepspeed_logger.setLevel(logging.ERROR)
    quiet_libraries()
    return deepspeed


def _reduce_scatter(scatter: Callable[..., None], whole: Tensor, part: Tensor, **options: Any) -> None:
    """DeepSpeed's reduce-scatter, but without work for one rank.

    There `part` already has the same memory as `whole`; gloo would copy every gradient.
    """
    if dist.get_world_size(options.get("group")) > 1:
        scatter(whole, part, **options)


def whole_shape(p: nn.Parameter) -> tuple[int, ...]:
    """Shape of a parameter before partitioning. Also takes parameters that DeepSpeed has not partitioned."""
    shape: Iterable[int] = getattr(p, "ds_shape", p.shape)
    return tuple(shape)


def whole_numel(p: nn.Parameter) -> int:
    """Elements of a partitioned parameter before partitioning."""
    numel: int = _attributes(p).ds_numel
    return numel


def local_partition(p: nn.Parameter) -> Tensor:
    """This rank's partition of a parameter, with its padding: [ceil(numel / world size)], in the model's dtype."""
    part: Tensor = _attributes(p).ds_tensor
    return part


def forget_copy_in_node(p: nn.Parameter) -> None:
    """Drop the copy of a parameter that its node keeps (hpZ), after its partition was set; DeepSpeed makes a new one at the next gather."""
    if getattr(p, "ds_secondary_tensor", None) is not None:
        _attributes(p).ds_secondary_tensor = None


def is_persistent(p: nn.Parameter) -> bool:
    """Whether DeepSpeed also keeps a full copy of the parameter on every rank."""
    return bool(_attributes(p).ds_persist)


def _attributes(p: nn.Parameter) -> Any:
    """A parameter without its type, which lacks the attributes that DeepSpeed adds."""
    return p


@contextmanager
def reporting_loads(alive: Callable[[int], None]) -> Iterator[None]:
    """Within this context report each set of weights that was gathered, and so read, by its number.

    transformers reads the weights of one module after another, each within deepspeed.zero.GatheredParameters, on every rank.
    """
    import deepspeed

    gathered = deepspeed.zero.GatheredParameters
    leave, number = gathered.__exit__, 0

    def report(context: Any, *error: Any) -> None:
        nonlocal number
        leave(context, *error)
        number += 1
        alive(number)

    gathered.__exit__ = report
    try:
        yield
    finally:
        gathered.__exit__ = leave


class Zero3Internals:
    """This rank's part of the ZeRO-3 optimizer: fp32 master weights in flat tensors, and the optimizer that updates them.

    engine: returned by deepspeed.initialize, stage 3.
    """

    def __init__(self, engine: Any, *, world_size: int) -> None:
        self._zero = engine.optimizer
        self._parameters: list[nn.Parameter] = list(engine.module.parameters())
        self._alone = world_size == 1

    @property
    def inner_optimizer(self) -> Any:
        """The optimizer that was given to deepspeed.initialize; it updates the flat master weights."""
        return self._zero.optimizer

    @property
    def master_weights(self) -> list[nn.Parameter]:
        """Flat fp32 tensors; each holds this rank's partitions of many parameters, one after another."""
        flats: list[nn.Parameter] = self._zero.fp32_partitioned_groups_flat
        return flats

    def place(self, p: nn.Parameter) -> tuple[int, int]:
        """Index of the flat tensor that holds a parameter's partition, and its first element there."""
        index, offset, _ = self._zero.grad_position[self._zero.get_param_id(p)]
        return index, offset

    def group_number(self, index: int) -> int:
        """Index of the parameter group (with its weight decay) that a flat tensor belongs to."""
        number: int = self._zero.sub_group_to_group_id[index]
        return number

    def remove_module_hooks(self) -> None:
        """Remove the hooks by which DeepSpeed gathers a module's weights before it runs and drops them afterwards.

        Only for one rank, whose parameters stay whole: there hooks do nothing, and take half of a small model's time.
        """
        self._zero.parameter_offload._remove_module_hooks()

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Within this context every rank has all weights, and modules run without collectives. Collective."""
        import deepspeed

        if self._alone:
            yield
            return
        offload = self._zero.parameter_offload
        # Some may be whole now, and which is not the same at each time.
        offload.partition_all_parameters()
        offload._remove_module_hooks()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            with deepspeed.zero.GatheredParameters(self._parameters):
                yield
        finally:
            # The order in which weights were needed is learnt anew: it may have changed.
            coordinator = offload.get_param_coordinator()
            if not coordinator.is_invalid_trace():
                coordinator._invalidate_trace()
            offload.setup_zero_stage3_hooks()

    def alias_equal_tensors(self) -> None:
        """Let tensors that are always equal share their memory. DeepSpeed keeps copies of them.

        In float32 the master weights are the weights. With one rank its partition is the whole parameter; each step replaces
        these views, so this has to be called after each.
        """
        for master, weights in zip(self.master_weights, self._zero.fp16_partitioned_groups_flat, strict=True):
            if weights is not None and (master.dtype, master.device) == (weights.dtype, weights.device):
                master.data = weights.data
        if self._alone:
            # Otherwise they would be gathered, that is copied, after each step.
            self._zero.persistent_parameters.clear()
            for p in self._parameters:
                p.data = local_partition(p).data[: whole_numel(p)].view(whole_shape(p))
                attributes = _attributes(p)
                attributes.ds_status = type(attributes.ds_status).AVAILABLE

    def set_loss_scale(self, factor: float) -> None:
        """Set the fixed factor of losses in float16."""
        self._zero.loss_scale = factor

    def discard_gradients(self) -> None:
        """Clear the gradients of the step without an update."""
        self._zero._overflow_clean_up(None)

    @contextmanager
    def setting_master_weights(self) -> Iterator[None]:
        """Within this context master weights may be set; at its end the model gets them. Collective."""
        # Drops the persistent full copies of small parameters. Otherwise stale values would survive.
        self._zero.checkpoint_event_prologue()
        yield
        self.copy_master_weights_to_model()
        self._zero.checkpoint_event_epilogue()
        # The parameters of one rank were partitioned above, and no hook would gather them.
        self.alias_equal_tensors()

    def copy_master_weights_to_model(self) -> None:
        """Copy the master weights to the partitions that are gathered for the forward pass, as DeepSpeed's step does.

        With bf16 these are another tensor, and DeepSpeed's setters change the fp32 master weights alone.
        """
        for index in range(len(self._zero.fp16_groups)):
            self._zero._reassign_or_swap_out_partitioned_parameters(index)
        for p in self._parameters:
            forget_copy_in_node(p)
