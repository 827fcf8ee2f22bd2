"""The routers of a model with experts: found as transformers records their logits, and watched while the model runs."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpo_trainer.losses.balance import routing_sums
from dpo_trainer.runtime.errors import invalid_configuration

_FIELD = "spec.training.routerAuxLoss"
# What transformers' function for this loss takes, in every architecture that has it and not one of its own.
_PARAMETERS = ["gate_logits", "num_experts", "top_k", "attention_mask"]


class Routers:
    """The routers of a causal language model. top_k: experts for each token."""

    def __init__(self, causal_lm: Any) -> None:
        """Raises TrainerError INVALID_CONFIGURATION for a model without routers, or with ones that transformers has no such loss for."""
        name = type(causal_lm).__name__
        formula = getattr(sys.modules[type(causal_lm).__module__], "load_balancing_loss_func", None)
        known = formula is not None and list(inspect.signature(formula).parameters) == _PARAMETERS
        recorder = _recorder(causal_lm)
        self.top_k: int = getattr(causal_lm, "num_experts_per_tok", 0)
        found = [] if recorder is None else list(_routers(causal_lm, recorder))
        if not (known and found and self.top_k):
            what = f"{len(found)} routers of another kind" if found else "no router"
            raise invalid_configuration(
                f"{_FIELD}: expected a model with experts for which transformers has the load-balancing loss, such as Mixtral, Qwen3-MoE or OLMoE, found "
                f"{name} with {what}; leave the field out"
            )
        self.count = len(found)
        self._found, self._index = found, recorder.index
        self._logits: list[Tensor] | None = None

    def watch(self) -> "Routers":
        """Take note of the logits in `recording`, from now on. With ZeRO-3, after its engine was made, whose hooks come first."""
        for router in self._found:
            router.register_forward_hook(self._after)
        return self

    def _after(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        # Not while a block is computed again in the backward pass.
        if self._logits is not None:
            self._logits.append(output[self._index].flatten(0, -2))

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """Within this context the list gets the logits of each router, [tokens, experts]."""
        logits: list[Tensor] = []
        self._logits = logits
        try:
            yield logits
        finally:
            self._logits = None

    def sums(self, logits: list[Tensor], weight: Tensor) -> Tensor:
        """Sums over all layers of balance.routing_sums: [2, experts]. weight: float32 [tokens]."""
        return torch.stack([routing_sums(each, self.top_k, weight) for each in logits]).sum(dim=0)


def _recorder(causal_lm: Any) -> Any:
    """What transformers records router logits by: a class of modules and the place in their output; None where it has nothing or several."""
    for part in causal_lm.modules():
        found = (getattr(part, "_can_record_outputs", None) or {}).get("router_logits")
        if found is not None:
            return found if hasattr(found, "target_class") else None
    return None


def _routers(causal_lm: nn.Module, recorder: Any) -> Iterator[nn.Module]:
    for name, part in causal_lm.named_modules():
        if isinstance(part, recorder.target_class) and (recorder.layer_name or "") in name:
            yield part
