"""The weight files of a model's folder, tensor by tensor: a large model is never in memory as a whole."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dpo_trainer.pretrained.files import INDEX, WEIGHTS, weight_map

# safetensors has no type annotations.
_open: Callable[..., Any] = safe_open
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class WeightFiles:
    """Tensors by name; each is read, through the page cache, when it is asked for."""

    def __init__(self, folder: Path, file: str = WEIGHTS) -> None:
        """file: name of the file where there is no index of several.

        Raises TrainerError when the folder's index is damaged, OSError and what safetensors raises when a file is.
        """
        names = sorted(set(weight_map(folder, folder.name).values())) if (folder / INDEX).is_file() else [file]
        self._files = [_open(folder / name, framework="pt", device="cpu") for name in names]
        self._file = {tensor: file for file in self._files for tensor in file.keys()}  # noqa: SIM118  # no mapping

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._file)

    @property
    def elements(self) -> int:
        """Elements of all tensors together."""
        return sum(math.prod(self.shape(name)) for name in self._file)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return tuple(self._file[name].get_slice(name).get_shape())

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the first tensor of floating-point numbers, which transformers takes for all where config.json names none."""
        kinds = (_DTYPES.get(self._file[name].get_slice(name).get_dtype()) for name in self._file)
        return next((kind for kind in kinds if kind is not None), None)

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is stored; its memory is the file's until it is changed or converted."""
        whole: Tensor = self._file[name].get_tensor(name)
        return whole


def have_the_models_names(model: nn.Module, names: Iterable[str]) -> bool:
    """Whether files with tensors of these names hold a model as it is, so that no weight has to be renamed, joined or split.

    A tied weight counts once, under its first name.
    """
    wanted = {name for name, _ in model.named_parameters()} | set(stored_buffers(model))
    kept_in_fp32 = getattr(model, "_keep_in_fp32_modules", None) or getattr(model, "_keep_in_fp32_modules_strict", None)
    return wanted <= set(names) and not kept_in_fp32


def stored_buffers(model: nn.Module) -> list[str]:
    """Names of the tensors that are stored with a model's weights and are none."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [name for name in model.state_dict() if name not in parameters]


def read_when_used(model: nn.Module, read: Callable[[str], Tensor]) -> None:
    """Have each module of a model without memory read its own weights before it runs, and drop them afterwards.

    read: tensor of a parameter's name. Each parameter gets a function `stored`, which returns its tensor.
    """
    for name, parameter in model.named_parameters():
        vars(parameter)["stored"] = partial(read, name)
    for module in model.modules():
        if own := {name: p for name, p in module._parameters.items() if p is not None}:
            module.register_forward_pre_hook(lambda module, _, own=own: module._parameters.update(_read(own)))
            module.register_forward_hook(lambda module, *_, own=own: module._parameters.update(own))


def _read(own: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(vars(p)["stored"](), requires_grad=False) for name, p in own.items()}
