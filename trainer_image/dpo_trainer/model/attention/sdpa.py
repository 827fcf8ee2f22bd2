"""Attention over packed pairs whose two answers share one copy of their prompt, as calls of torch's scaled dot-product attention.

A packed row holds, for each pair, prompt, chosen and rejected tokens one after another. Prompt and chosen answer are an
ordinary causal sequence; the rejected answer's tokens attend to the prompt and to themselves, and not to the chosen one.
So the attention of a pair is two causal calls, whose cost is that of two rows without the second copy of the prompt, and no
mask of the whole row is ever made. The idea is that of prefix sharing for DPO (Wang et al. 2024, 2410.20305).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dpo_trainer.batches.sequences import Span
from dpo_trainer.model.attention.scored import CHANGES, changes_scores, scored

# Attention arguments that are supported by all kernels or may be ignored. Any other (biases, indices of the keys to attend to) would be dropped
# silently, often for long texts alone.
_KNOWN = frozenset({"dropout", "scaling", "is_causal", "position_ids", "use_cache", "output_attentions"})


class UnsupportedAttention(ValueError):
    """The model's attention needs a feature that packing does not support."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: tuple[Span, ...] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in the form that transformers calls it.

    query: [1, heads, length, head_dim]. key, value: [1, key-value heads, length, head_dim]. spans: pairs of a packed row, which
    cover it; without them it is plain SDPA with the given mask. attention_mask: with spans, the placeholder of Policy.forward;
    anything else is a mask that the model made, which packed pairs would not see.
    Returns [1, length, heads, head_dim] and None. Raises UnsupportedAttention.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    changed = changes_scores(options)
    if spans is None:
        if changed:
            return scored(module, query, key, value, attention_mask, **options), None
        if sliding_window is not None:
            options["sliding_window"] = sliding_window
        plain_output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return plain_output
    check(attention_mask, options, CHANGES)

    def causal(wanted: Tensor, keys: Tensor, values: Tensor, before: int) -> Tensor:
        """Queries that follow `before` keys of their own sequence and attend to these keys and to themselves."""
        count, length = wanted.shape[2], keys.shape[2]
        plain = before == 0 and (sliding_window is None or length <= sliding_window)
        mask = None if plain else _mask(count, length, before, sliding_window, query.device)
        output: Tensor
        if changed:
            return scored(module, wanted, keys, values, mask, **{**options, "is_causal": plain})
        output, _ = sdpa_attention_forward(module, wanted, keys, values, mask, **{**options, "is_causal": plain})
        return output

    parts = []
    for span, (queries, keys, values) in zip(spans, _pieces(spans, query, key, value), strict=True):
        parts.append(causal(queries[0], keys[0], values[0], 0))
        if span.rejected:
            whole_keys, whole_values = (
                torch.cat([first[:, :, : span.prompt], own], dim=2) for first, own in (keys, values)
            )
            parts.append(causal(queries[1], whole_keys, whole_values, span.prompt))
    return torch.cat(parts, dim=1), None


def _pieces(spans: tuple[Span, ...], *tensors: Tensor) -> Iterator[list[list[Tensor]]]:
    """For each pair, each tensor's part of prompt and chosen answer, and that of the rejected one if there is one.

    One split for each tensor, whose backward pass is one concatenation. A slice's would make a tensor of the whole row for each pair.
    """
    sizes = [size for _, p, c, r in spans for size in ((p + c, r) if r else (p + c,))]
    split = [iter(tensor.split_with_sizes(sizes, dim=2)) for tensor in tensors]
    for span in spans:
        yield [[next(parts) for _ in range(2 if span.rejected else 1)] for parts in split]


def check(attention_mask: Tensor | None, options: dict[str, Any], known: frozenset[str] = frozenset()) -> None:
    """Raises UnsupportedAttention when a model's attention needs an unsupported argument. known: those that a kernel supports in addition."""
    if wanted := sorted(name for name, value in options.items() if value is not None and name not in _KNOWN | known):
        raise UnsupportedAttention(f"its attention takes {', '.join(wanted)}")
    if attention_mask is None or attention_mask.numel() != 1:
        raise UnsupportedAttention("it makes masks of its own")


def _mask(queries: int, keys: int, before: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees: bool [1, 1, queries, keys]. before: keys that come before the first query."""
    distance = torch.arange(before, before + queries, device=device)[:, None] - torch.arange(keys, device=device)
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    return seen[None, None]
