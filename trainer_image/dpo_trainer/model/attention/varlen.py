"""Attention over packed pairs as one call of torch's variable-length FlashAttention: GPUs and 16 bits alone, no compiler.

Keys and values are gathered once, with a shared prompt before each of its two answers; queries stay where they are. The kernel aligns
its causal mask at the end of each sequence, so a rejected answer's queries see all of their prompt.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from dpo_trainer.batches.sequences import Sequences, Span
from dpo_trainer.model.attention.sdpa import attention, check

# (query, key, value, sequences, window, scale) -> output, as row_attention describes them.
Kernel = Callable[[Tensor, Tensor, Tensor, Sequences, int | None, float | None], Tensor]


def varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: tuple[Span, ...] | None = None,
    sequences: Sequences | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As sdpa.attention. sequences: of the spans, on the tensors' device."""
    if sequences is None:
        return attention(
            module, query, key, value, attention_mask, spans=spans, sliding_window=sliding_window, **options
        )
    check(attention_mask, options)
    return row_attention(torch_kernel(), query, key, value, sequences, sliding_window, options.get("scaling")), None


def row_attention(
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Sequences,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """Attention of a packed row by a variable-length kernel.

    query: [1, heads, length, head_dim]. key, value: [1, key-value heads, length, head_dim]. window: tokens that a query sees, itself
    included; None means all before it. scale: of the scores; None means the kernel's own, 1/√head_dim.
    The kernel gets [tokens, heads, head_dim]. Returns [1, length, heads, head_dim].
    """
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if sequences.keys is not None:
        keys, values = keys.index_select(0, sequences.keys), values.index_select(0, sequences.keys)
    if window is not None and window >= sequences.longest_key:
        window = None
    return kernel(queries, keys, values, sequences, window, scale)[None]


@lru_cache(maxsize=1)
def torch_kernel() -> Kernel:
    """The kernel of the installed torch. Raises ImportError when it has none."""
    from torch.nn.attention.varlen import varlen_attn

    return adapted(varlen_attn)


def adapted(function: Callable[..., Any]) -> Kernel:
    """torch's varlen_attn as a Kernel, by the parameters that it has: torch 2.10 has is_causal, and no windows."""
    known = inspect.signature(function).parameters

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, window: int | None, scale: float | None
    ) -> Tensor:
        settings: dict[str, Any] = {}
        if "window_size" in known:
            settings["window_size"] = (-1 if window is None else window - 1, 0)
        elif window is None:
            settings["is_causal"] = True
        else:
            raise RuntimeError(f"varlen_attn of torch {torch.__version__} has no windows")
        if scale is not None and scale != query.shape[-1] ** -0.5:
            if "scale" not in known:
                raise RuntimeError(f"varlen_attn of torch {torch.__version__} takes no scale of the scores")
            settings["scale"] = scale
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            if "enable_gqa" in known:
                settings["enable_gqa"] = True
            else:
                key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        output: Tensor = function(
            query, key, value, sequences.query_bounds, sequences.key_bounds, sequences.longest_query,
            sequences.longest_key, **settings,
        )  # fmt: skip
        return output

    return kernel
