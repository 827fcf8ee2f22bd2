"""The state of a DeepSpeed ZeRO-3 engine as named slices, and back.

ZeRO-3 flattens each parameter and gives rank r the elements [r*P, (r+1)*P), P = ceil(numel / world size); the last
ranks may have padding. By name and range a slice means the same for any number of ranks, so a checkpoint of one world
size can be read by another.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dpo_trainer.checkpoint.eightbit import get_moment, is_8bit, set_moment
from dpo_trainer.checkpoint.manifest import Parameter
from dpo_trainer.checkpoint.shard import Entry
from dpo_trainer.checkpoint.slices import KINDS, partition

ReadSlice = Callable[[str, str, int, int], Tensor]


class Zero3State:
    """Reads and sets what a rank holds.

    engine: of deepspeed.initialize, stage 3, with an Adam whose state is named exp_avg and exp_avg_sq, or with
        bitsandbytes' 8-bit one.
    module: whose parameter names are used; the engine's own module or a part of it that has every trained parameter.
    """

    def __init__(self, engine: Any, module: nn.Module, *, rank: int, world_size: int) -> None:
        self._optimizer = engine.optimizer
        self._rank, self._world_size = rank, world_size
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def parameters(self) -> dict[str, Parameter]:
        """Every trained parameter as a whole."""
        return {
            name: Parameter(shape=tuple(p.ds_shape), dtype=str(p.dtype).removeprefix("torch."))
            for name, p in self._trained.items()
        }

    def adam_step(self) -> int:
        """Updates that the optimizer has counted; 0 before the first."""
        steps = {int(state["step"]) for state in self._states() if "step" in state}
        if len(steps) > 1:
            raise AssertionError(f"expected one Adam step count, found {sorted(steps)}")
        return steps.pop() if steps else 0

    def entries(self) -> list[Entry]:
        """This rank's slices, to be written; names are kind/parameter. Empty slices are left out."""
        fresh = self.adam_step() == 0
        made = []
        for kind in KINDS:
            for name, p in self._trained.items():
                start, end = partition(p.ds_numel, self._rank, self._world_size)
                if end > start:
                    read = self._reader(p, kind, end - start, zeros=fresh and kind != "fp32")
                    made.append(Entry(f"{kind}/{name}", torch.float32, end - start, read))
        return made

    def restore(self, read: ReadSlice, adam_step: int) -> None:
        """Set this rank's slices, and the weights that the forward pass uses. Collective.

        read: (kind, name, start, end) -> float32 [end - start] on the CPU.
        """
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        # Whole copies that are kept for small parameters go first; otherwise they would outlive what is loaded here.
        self._optimizer.checkpoint_event_prologue()
        self._make_adam_state(adam_step)
        eight_bit = is_8bit(self._optimizer.optimizer)
        for kind in KINDS if adam_step else KINDS[:1]:
            # 8-bit state has scales that parameters share, so it is set as a whole.
            flats = [torch.zeros(flat.numel()) if eight_bit and kind != "fp32" else None for flat in self._flats()]
            for name, p in self._trained.items():
                start, end = partition(p.ds_numel, self._rank, self._world_size)
                value = torch.zeros(p.ds_tensor.numel(), dtype=torch.float32)
                if end > start:
                    value[: end - start] = read(kind, name, start, end)
                index, offset = self._place(p)
                if kind == "fp32":
                    safe_set_local_fp32_param(p, value)
                elif (flat := flats[index]) is not None:
                    flat[offset : offset + len(value)] = value
                else:
                    safe_set_local_optimizer_state(p, value, kind)
            for state, flat in zip(self._states(), flats, strict=True):
                if flat is not None:
                    set_moment(state, kind, flat)
        # DeepSpeed's setters change the fp32 master alone. This is what its step does afterwards: copy it to the
        # partitions that are gathered for the forward pass (with bf16 they are another tensor).
        for index in range(len(self._optimizer.fp16_groups)):
            self._optimizer._reassign_or_swap_out_partitioned_parameters(index)
        self._optimizer.checkpoint_event_epilogue()

    def _flats(self) -> list[nn.Parameter]:
        """The master weights as the optimizer knows them: a flat tensor for the partitions of many parameters."""
        flats: list[nn.Parameter] = self._optimizer.fp32_partitioned_groups_flat
        return flats

    def _place(self, p: nn.Parameter) -> tuple[int, int]:
        """Which flat tensor a parameter's partition is in, and from which element on."""
        index, offset, _ = self._optimizer.grad_position[self._optimizer.get_param_id(p)]
        return index, offset

    def _states(self) -> Iterator[dict[str, Any]]:
        for flat in self._flats():
            yield self._optimizer.optimizer.state.get(flat, {})

    def _reader(self, p: nn.Parameter, kind: str, numel: int, *, zeros: bool) -> Callable[[], Tensor]:
        index, offset = self._place(p)

        def read() -> Tensor:
            if zeros:
                return torch.zeros(numel, dtype=torch.float32)
            flat = self._flats()[index]
            if kind == "fp32":
                return flat.detach()[offset : offset + numel]
            state = self._optimizer.optimizer.state[flat]
            if is_8bit(self._optimizer.optimizer):
                return get_moment(state, kind, offset, offset + numel)
            moment: Tensor = state[kind]
            return moment[offset : offset + numel]

        return read

    def _make_adam_state(self, adam_step: int) -> None:
        """Adam makes its state in its first step; a resumed one needs it before."""
        adam = self._optimizer.optimizer
        for index, flat in enumerate(self._flats()):
            if adam_step == 0:
                adam.state.pop(flat, None)
                continue
            number = self._optimizer.sub_group_to_group_id[index]
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
