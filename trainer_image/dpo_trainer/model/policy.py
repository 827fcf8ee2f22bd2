"""The policy: wraps a causal language model and returns the log-probs of given answers."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dpo_trainer.batches.batch import Layout, MicroBatch
from dpo_trainer.model.attention import kernels
from dpo_trainer.model.head import OutputHead, stride, token_logps
from dpo_trainer.model.load import causal_lm_of
from dpo_trainer.runtime.errors import invalid_configuration


class Policy(nn.Module):
    """Sums of answer log-probs under a causal language model, plain or with adapters.

    model: the Hugging Face model, or the PEFT model around it. Parameter names begin with "model.".
    whole_logits: compute every position's logits by the model's own forward pass: slower and larger, for models that
        reach their output layer in an unusual way.
    head: from hidden states to log-probs.
    layout, kernel: how batches for this model are best laid out, and what computes the attention of packed ones; see pack.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        causal_lm = causal_lm_of(model)
        prefix = _transformer_name(causal_lm)
        if prefix not in causal_lm._modules or causal_lm.get_output_embeddings() is None:
            raise invalid_configuration(
                f"spec.model: expected a causal language model with a transformer and an output layer, found {type(causal_lm).__name__}"
            )
        self.head = OutputHead(causal_lm, prefix)
        self.whole_logits = False
        self.layout: Layout = "off"
        self.kernel: kernels.Kernel = "sdpa"
        # Second names for submodules of self.model; a tuple keeps them out of named_parameters().
        self._parts: tuple[Any, str] = (causal_lm, prefix)

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

    def forward(
        self, batch: MicroBatch, *, whole_logits: bool = False, every_token: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of the batch's answers (and prompts, where it scores them), summed over their tokens.

        whole_logits: as the attribute, for this call. every_token: sample every scored token, not only some.
        Returns float64 [segments, 2], nats: sums over all tokens of each segment, and over those of its head; and float64
        [3, sampled], see head.token_logps.
        """
        every = 1 if every_token else stride(len(batch.scored_targets))
        causal_lm, prefix = self._parts
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.spans is not None:
            inputs["spans"] = batch.spans
            if self.kernel == "varlen":
                inputs["sequences"] = batch.sequences
            # A tensor of four dimensions is taken for a finished mask. Otherwise transformers would make one of the whole row.
            inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.input_ids.device)
        if _accepts(causal_lm._modules[prefix], "position_ids"):
            inputs["position_ids"] = batch.position_ids
        if whole_logits or self.whole_logits:
            logits = causal_lm(**inputs).logits.flatten(0, 1)[batch.scored_positions]
            logps, sampled = token_logps(logits, batch.scored_targets, every)
        else:
            # Only answer rows enter the head: prompts and padding would cost most of the logits' memory.
            output = causal_lm._modules[prefix](**inputs)
            rows = output.last_hidden_state.flatten(0, 1).index_select(0, batch.scored_positions)
            logps, sampled = self.head(output, rows, batch.scored_targets, every)
        # Sums in float64: near -600 nats float32 has steps of 6e-5, and DPO subtracts two such sums from two others.
        both = torch.stack([logps.double(), logps.double() * batch.scored_head], dim=1)
        sums = torch.zeros(batch.segments, 2, dtype=torch.float64, device=logps.device)
        return sums.index_add(0, batch.scored_segment, both), sampled


def _transformer_name(causal_lm: Any) -> str:
    """Name of the transformer inside a causal language model; empty without one.

    It is the model's prefix, but where that is the name of the whole in a larger model, as with Llama 4.
    """
    prefix: str = getattr(causal_lm, "base_model_prefix", "")
    if prefix in causal_lm._modules:
        return prefix
    return next((name for name, part in causal_lm.named_children() if hasattr(part, "get_input_embeddings")), "")


def _accepts(module: nn.Module, name: str) -> bool:
    return name in inspect.signature(type(module).forward).parameters
