"""Reading a model's weights under ZeRO-3: every rank reads the slices that it holds, and nothing is sent between ranks.

transformers lets rank 0 read all weights and send each one to all ranks whole, of which each keeps its part: a model of 141 GB would go through one
process and over the network once for each node.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpo_trainer.checkpoint.slices import partition
from dpo_trainer.distributed.zero3_internals import forget_copy_in_node, local_partition, reporting_loads, whole_shape
from dpo_trainer.model.weight_files import WeightFiles, stored_buffers

# The function of transformers.modeling_utils that fills a partitioned model, and what it is called with.
FILL = "_load_state_dict_into_zero3_model"


@contextmanager
def own_slices(folder: Path, alive: Callable[[int], None]) -> Iterator[None]:
    """Within this context transformers loads the model of a folder so, where its files name the weights as the model does.

    Others, such as those whose experts are one tensor in memory and many in files, are read as transformers does it. alive: called with the number
    of weights, or sets of them, that have been read.
    """
    from transformers import modeling_utils
    from transformers.core_model_loading import WeightConverter

    before, read = vars(modeling_utils)[FILL], count(1)

    def one_more(_: int) -> None:
        # transformers may gather a module after its weights were read here: the number goes on.
        alive(next(read))

    def fill(model: Any, state_dict: Any, load_config: Any = None) -> tuple[list[str], set[str]]:
        files = WeightFiles(folder)
        names = _names_in_files(model, files)
        if names is None or any(isinstance(entry, WeightConverter) for entry in load_config.weight_mapping or ()):
            found: tuple[list[str], set[str]] = before(model, state_dict, load_config)
            return found
        return [], _fill(model, files, names, one_more)

    vars(modeling_utils)[FILL] = fill
    try:
        with reporting_loads(one_more):
            yield
    finally:
        vars(modeling_utils)[FILL] = before


def _names_in_files(model: Any, files: WeightFiles) -> dict[str, str] | None:
    """The name in the files of each tensor of a model that they have; None when one is missing or has another shape.

    A tied weight may be missing under one of its names. Files of older models leave the prefix of the transformer out.
    """
    prefix = f"{model.base_model_prefix}."
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: whole_shape(parameter) for name, parameter in parameters.items()}
    shapes |= {name: tuple(model.get_buffer(name).shape) for name in stored_buffers(model)}
    found = {
        name: stored
        for name, shape in shapes.items()
        for stored in (name, name.removeprefix(prefix))
        if stored in files.names and files.shape(stored) == shape
    }
    tied = set(getattr(model, "all_tied_weights_keys", ()))
    return found if shapes.keys() - tied <= found.keys() else None


def _fill(model: Any, files: WeightFiles, names: dict[str, str], alive: Callable[[int], None]) -> set[str]:
    """Set what this rank holds of each weight; returns the names that the files lack."""
    for number, (name, parameter) in enumerate(model.named_parameters(remove_duplicate=False), start=1):
        if name in names:
            fill_partition(parameter, files.tensor(names[name]))
            # transformers would give the others random values.
            parameter._is_hf_initialized = True
        alive(number)
    for name in stored_buffers(model):
        buffer = model.get_buffer(name)
        with torch.no_grad():
            buffer.copy_(files.tensor(names[name]))
        buffer._is_hf_initialized = True
    return set(model.state_dict()) - names.keys()


def fill_partition(parameter: nn.Parameter, whole: Tensor) -> None:
    """Copy this rank's slice of a tensor, of whose memory nothing else is touched, into its partition of a parameter."""
    part = slice_of(whole, dist.get_rank(), dist.get_world_size())
    with torch.no_grad():
        local_partition(parameter)[: part.numel()].copy_(part)
    forget_copy_in_node(parameter)


def slice_of(whole: Tensor, rank: int, world_size: int) -> Tensor:
    """The part of a tensor that a rank holds, in the tensor's own memory."""
    start, end = partition(whole.numel(), rank, world_size)
    return whole.reshape(-1)[start:end]
