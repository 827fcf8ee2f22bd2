"""Convert the state of bitsandbytes' 8-bit AdamW (Dettmers et al. 2021, 2110.02861) to float32 moments and back.

Each block of 256 elements has a float32 scale, and each element the index of a number between -1 and 1 in a table. A checkpoint
stores the products, so any number of ranks can read it: with the same number of ranks the conversion is exact, with another one
values are quantized again. State of fewer than 4096 elements is float32.
"""

from typing import Any

import torch
from torch import Tensor

_BLOCK = 256
_CHUNK = _BLOCK << 16
# Name of a moment in a checkpoint -> number in the names of bitsandbytes' state.
_NUMBERS = {"exp_avg": "1", "exp_avg_sq": "2"}


def is_8bit(optimizer: Any) -> bool:
    """Whether an optimizer is bitsandbytes', without importing it."""
    return type(optimizer).__module__.partition(".")[0] == "bitsandbytes"


def get_moment(state: dict[str, Any], kind: str, start: int, end: int) -> Tensor:
    """Elements start to end of a moment, of any Adam: float32, on the state's device. kind: exp_avg or exp_avg_sq."""
    if kind in state:  # not bitsandbytes'
        plain: Tensor = state[kind][start:end]
        return plain
    number = _NUMBERS[kind]
    codes: Tensor = state[f"state{number}"][start:end]
    if codes.dtype == torch.float32:
        return codes
    blocks = torch.arange(start, end, device=codes.device) // _BLOCK
    values: Tensor = state[f"qmap{number}"][codes.int()] * state[f"absmax{number}"][blocks]
    return values


def set_moment(state: dict[str, Any], kind: str, values: Tensor) -> None:
    """Set a whole moment. values: float32 [elements], on any device."""
    number = _NUMBERS[kind]
    codes: Tensor = state[f"state{number}"]
    if codes.dtype == torch.float32:
        codes.copy_(values)
        return
    table: Tensor = state[f"qmap{number}"]
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK].to(table.device)
        blocks = torch.nn.functional.pad(part, (0, -len(part) % _BLOCK)).view(-1, _BLOCK)
        scales = _scales(blocks, table)
        ratios = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        found = torch.bucketize(ratios, (table[1:] + table[:-1]) / 2)
        codes[start : start + len(part)] = found.flatten()[: len(part)].to(torch.uint8)
        first = start // _BLOCK
        state[f"absmax{number}"][first : first + len(scales)] = scales


def _scales(blocks: Tensor, table: Tensor) -> Tensor:
    """Per-block scale that reproduces the values from the table. blocks: [blocks, 256]. Returns [blocks].

    The table goes up to 1 and, if it has negative numbers, down to about -0.993: the largest element of a block is at one of
    the two ends, which gives the scale that it was stored with.
    """
    scales = blocks.amax(dim=1) / table[-1]
    if table[0] < 0:
        scales = torch.maximum(scales, blocks.amin(dim=1) / table[0])
    return scales.clamp(min=0)
