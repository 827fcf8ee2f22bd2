"""A base in 4 bits for adapters: its linear layers in NF4 (Dettmers et al. 2023, 2305.14314), by bitsandbytes, on GPUs and CPUs.

Every rank holds the whole 4-bit base. Its weights are no parameters of the model, so ZeRO-3 partitions, gathers and saves what is left in 16
or 32 bits: adapters, embeddings, norms and the output layer.
"""

from typing import Any

import torch
from torch import nn

from dpo_trainer.runtime.errors import invalid_configuration


def loading_options(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of transformers' from_pretrained that quantize each weight as it is read, onto a device.

    dtype: of the computation. Raises TrainerError INVALID_CONFIGURATION when bitsandbytes is missing.
    """
    try:
        import bitsandbytes  # noqa: F401  # is it there?
        from transformers import BitsAndBytesConfig
    except ImportError as error:
        raise invalid_configuration(
            f"spec.adapter.type: qlora needs the package bitsandbytes, which can't be loaded here ({error}); use lora, or an image that has it"
        ) from error
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": device}}


def take_out_of_parameters(model: Any) -> None:
    """Make the 4-bit weights plain attributes of their layers, and remove what accelerate adds to a model that it placed.

    Adapters then treat these layers as the linear layers that they are.
    """
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(model, recurse=True)
    model.is_loaded_in_4bit = False
    keep_unpacked(model)
    for layer in four_bit_layers(model):
        layer.__dict__["weight"] = layer._parameters.pop("weight")


def keep_unpacked(model: nn.Module) -> None:
    """Have evaluation leave the weights as they are. On some CPUs it would repack them, in a form that training can't use and not all widths fit."""
    for layer in four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = False


def four_bit_layers(model: nn.Module) -> list[Any]:
    """The layers whose weights are in 4 bits; PEFT's of the same name around them are none."""
    kinds = (type(module) for module in model.modules())
    found = {kind for kind in kinds if kind.__name__ == "Linear4bit" and kind.__module__.startswith("bitsandbytes.")}
    return [module for module in model.modules() if type(module) in found]


def size(model: nn.Module) -> tuple[int, int]:
    """Elements in 4 bits, and the bytes that they take with their scales."""
    elements = total = 0
    for layer in four_bit_layers(model):
        state = layer.weight.quant_state
        elements += state.shape.numel()
        scales = [state.absmax, state.code, *([state.state2.absmax, state.state2.code] if state.nested else [])]
        total += sum(tensor.numel() * tensor.element_size() for tensor in (layer.weight, *scales))
    return elements, total
