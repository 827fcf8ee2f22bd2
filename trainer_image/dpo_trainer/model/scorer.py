"""What the policy and a reward model share: a transformer that reads batches in some layout."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dpo_trainer.batches.batch import Layout, MicroBatch
from dpo_trainer.model.attention import kernels
from dpo_trainer.model.load import causal_lm_of


class Scorer(nn.Module):
    """A Hugging Face model that scores answers, plain or with adapters; forward is that of the subclass.

    model: the Hugging Face model, or the PEFT model around it. Parameter names begin with "model.".
    prefix: name of its transformer.
    layout, kernel: how batches for this model are best laid out, and what computes the attention of packed ones; see pack.
    """

    def __init__(self, model: nn.Module, prefix: str) -> None:
        super().__init__()
        self.model = model
        self.layout: Layout = "off"
        self.kernel: kernels.Kernel = "sdpa"
        # Second names for submodules of self.model; a tuple keeps them out of named_parameters().
        self._parts: tuple[Any, str] = (causal_lm_of(model), prefix)

    def pack(self, layout: Layout, kernel: kernels.Kernel = "sdpa") -> bool:
        """Accept batches of this layout, by this kernel. Returns False and changes nothing if the model's attention does not support it."""
        if layout != "off" and not kernels.enable(self._parts[0], kernel):
            return False
        self.layout, self.kernel = layout, kernel
        return True

    def kernel_problem(self, kernel: kernels.Kernel, device: torch.device) -> str | None:
        """Why a kernel can't be used for this model on a device; None when it can."""
        causal_lm = self._parts[0]
        return kernels.problem(kernel, kernels.head_shapes(causal_lm), device, causal_lm.dtype)

    @property
    def attention(self) -> str:
        """What computes the attention: the kernel of packed pairs, else the model's own implementation."""
        own: str = self._parts[0].config.get_text_config()._attn_implementation
        return (
            self.kernel if self.layout != "off" else next((k for k, name in kernels.NAMES.items() if name == own), own)
        )

    def after_each_pass(self, call: Callable[[], None]) -> None:
        """Register a hook that is called after each forward pass: over a micro-batch, or for one more token of an answer."""
        causal_lm, prefix = self._parts
        causal_lm._modules[prefix].register_forward_hook(lambda *_: call())

    def _inputs(self, batch: MicroBatch) -> dict[str, Any]:
        """What the transformer takes of a batch."""
        transformer = self._parts[0]._modules[self._parts[1]]
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.spans is not None:
            inputs["spans"] = batch.spans
            if self.kernel == "varlen":
                inputs["sequences"] = batch.sequences
            # A tensor of four dimensions is taken for a finished mask. Otherwise transformers would make one of the whole row.
            inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.input_ids.device)
        if "position_ids" in inspect.signature(type(transformer).forward).parameters:
            inputs["position_ids"] = batch.position_ids
        return inputs

    def _states(self, batch: MicroBatch, positions: Tensor) -> tuple[Any, Tensor]:
        """The transformer's output for a batch, and its hidden states at some flat positions: [positions, hidden]."""
        causal_lm, prefix = self._parts
        output = causal_lm._modules[prefix](**self._inputs(batch))
        return output, output.last_hidden_state.flatten(0, 1).index_select(0, positions)
