"""The state of a DeepSpeed ZeRO-3 engine as named slices, for checkpoints (checkpoint/engine_state.py).

ZeRO-3 flattens each parameter and gives rank r the elements [r*P, (r+1)*P), P = ceil(numel / world size); the last
ranks may have padding. By name and range a slice means the same for any number of ranks, so a checkpoint of one world
size can be read by another.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dpo_trainer.checkpoint.engine_state import ReadSlice
from dpo_trainer.checkpoint.manifest import Parameter
from dpo_trainer.checkpoint.shard import Entry
from dpo_trainer.checkpoint.slices import KINDS, partition, slices_of
from dpo_trainer.distributed.zero3_internals import Zero3Internals, local_partition, whole_numel, whole_shape
from dpo_trainer.engine.eightbit import get_moment, is_8bit, set_moment


class Zero3State:
    """Reads and sets what a rank holds. Implements checkpoint.engine_state.EngineState.

    zero: with an Adam whose state is named exp_avg and exp_avg_sq, or with bitsandbytes' 8-bit AdamW.
    module: gives the parameter names; the engine's own module or a part of it that has every trained parameter.
    """

    def __init__(self, zero: Zero3Internals, module: nn.Module, *, rank: int, world_size: int) -> None:
        self._zero = zero
        self._rank, self._world_size = rank, world_size
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def parameters(self) -> dict[str, Parameter]:
        """Every trained parameter as a whole, by name."""
        return {
            name: Parameter(shape=whole_shape(p), dtype=str(p.dtype).removeprefix("torch."))
            for name, p in self._trained.items()
        }

    def adam_step(self) -> int:
        """Number of updates that the optimizer has counted; 0 before the first."""
        steps = {int(state["step"]) for state in self._states() if "step" in state}
        if len(steps) > 1:
            raise AssertionError(f"expected one Adam step count, found {sorted(steps)}")
        return steps.pop() if steps else 0

    def entries(self) -> list[Entry]:
        """This rank's slices to write, named kind/parameter. Empty slices are left out."""
        fresh = self.adam_step() == 0
        numels = {name: whole_numel(p) for name, p in self._trained.items()}
        parts = slices_of(numels, self._rank, self._world_size)
        return [
            Entry(f"{kind}/{name}", torch.float32, end - start,
                  self._reader(self._trained[name], kind, end - start, zeros=fresh and kind != "fp32"))
            for kind in KINDS
            for name, (start, end) in parts.items()
        ]  # fmt: skip

    def restore(self, read: ReadSlice, adam_step: int) -> None:
        """Set this rank's slices, and the weights that the forward pass uses. Collective.

        read: (kind, name, start, end) -> float32 [end - start] on the CPU.
        """
        with self._zero.setting_master_weights():
            self._make_adam_state(adam_step)
            for kind in KINDS if adam_step else KINDS[:1]:
                self._restore_kind(kind, read)

    def _restore_kind(self, kind: str, read: ReadSlice) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        eight_bit = is_8bit(self._zero.inner_optimizer)
        # 8-bit state has scales that parameters share, so it is set as a whole.
        flats = [
            torch.zeros(flat.numel()) if eight_bit and kind != "fp32" else None for flat in self._zero.master_weights
        ]
        for name, p in self._trained.items():
            start, end = partition(whole_numel(p), self._rank, self._world_size)
            value = torch.zeros(local_partition(p).numel(), dtype=torch.float32)
            if end > start:
                value[: end - start] = read(kind, name, start, end)
            index, offset = self._zero.place(p)
            if kind == "fp32":
                safe_set_local_fp32_param(p, value)
            elif (flat := flats[index]) is not None:
                flat[offset : offset + len(value)] = value
            else:
                safe_set_local_optimizer_state(p, value, kind)
        for state, flat in zip(self._states(), flats, strict=True):
            if flat is not None:
                set_moment(state, kind, flat)

    def _states(self) -> Iterator[dict[str, Any]]:
        for flat in self._zero.master_weights:
            yield self._zero.inner_optimizer.state.get(flat, {})

    def _reader(self, p: nn.Parameter, kind: str, numel: int, *, zeros: bool) -> Callable[[], Tensor]:
        index, offset = self._zero.place(p)

        def read() -> Tensor:
            if zeros:
                return torch.zeros(numel, dtype=torch.float32)
            flat = self._zero.master_weights[index]
            if kind == "fp32":
                return flat.detach()[offset : offset + numel]
            return get_moment(self._zero.inner_optimizer.state[flat], kind, offset, offset + numel)

        return read

    def _make_adam_state(self, adam_step: int) -> None:
        """Make the optimizer state before it is set. Adam itself makes its state in its first step."""
        adam = self._zero.inner_optimizer
        for index, flat in enumerate(self._zero.master_weights):
            if adam_step == 0:
                adam.state.pop(flat, None)
                continue
            number = self._zero.group_number(index)
            group = adam.param_groups[number]
            if is_8bit(adam):
                group["params"] = [flat]  # as DeepSpeed does for each of its steps
                adam.init_state(group, flat, number, 0)
                group["params"] = []
                adam.state[flat]["step"] = adam_step
                continue
            count: Any = adam_step
            if isinstance(adam, torch.optim.Adam | torch.optim.AdamW):
                on_device = group.get("fused") or group.get("capturable")
                device = flat.device if on_device else torch.device("cpu")
                count = torch.tensor(float(adam_step), dtype=torch.float32, device=device)
            adam.state[flat] = {"step": count, **{kind: torch.zeros_like(flat.data) for kind in KINDS[1:]}}
