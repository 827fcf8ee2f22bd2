"""How large an update was, read from Adam's state after it: there is no copy of the weights from before."""

from typing import Any

import torch
from torch import Tensor

from dpo_trainer.distributed.zero3_internals import Zero3Internals
from dpo_trainer.engine.eightbit import get_moment

# Elements that are looked at together: a whole partition would need its memory a few times more.
_CHUNK = 1 << 22


def update_squares(zero: Zero3Internals) -> Tensor:
    """Squared norms of this rank's part of the last update and of the trained weights after it: float64 [2], on the CPU.

    The update is AdamW's (Loshchilov & Hutter 2017, 1711.05101, algorithm 2) solved for the weights before it; padding adds 0.
    """
    adam = zero.inner_optimizer
    found = torch.zeros(2, dtype=torch.float64)
    for index, flat in enumerate(zero.master_weights):
        state: dict[str, Any] = adam.state.get(flat, {})
        if "step" not in state:
            continue
        group = adam.param_groups[zero.group_number(index)]
        rate, decay = group["lr"], group["weight_decay"]
        (first, second), count = group["betas"], float(state["step"])
        for start in range(0, flat.numel(), _CHUNK):
            end = min(start + _CHUNK, flat.numel())
            weights = flat.detach()[start:end]
            mean, square = (get_moment(state, kind, start, end) for kind in ("exp_avg", "exp_avg_sq"))
            change = mean / (1 - first**count) / ((square / (1 - second**count)).sqrt() + group["eps"])
            change = rate * (change + decay * weights) / (1 - rate * decay)
            found += torch.stack([change.double().square().sum(), weights.double().square().sum()]).cpu()
    return found
