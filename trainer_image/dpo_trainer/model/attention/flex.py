"""Attention over packed pairs by FlexAttention: one call for the row, whose kernel torch compiles at its first use."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from dpo_trainer.batches.sequences import Span, copied
from dpo_trainer.model.attention.sdpa import attention, check


def flex(
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
    """As sdpa.attention; the kernel skips the blocks that no token attends to (2410.20305).

    FlexAttention has no backward pass on CPUs: there `attention` is used when gradients are needed.
    """
    if spans is None or (query.device.type == "cpu" and torch.is_grad_enabled()):
        return attention(
            module, query, key, value, attention_mask, spans=spans, sliding_window=sliding_window, **options
        )
    check(attention_mask, options)
    found = _flex_attention(query.device.type)(
        query,
        key,
        value,
        block_mask=_blocks(spans, sliding_window, query.device),
        scale=options.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found.transpose(1, 2).contiguous(), None


@lru_cache(maxsize=1)
def _flex_attention(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device == "cpu" else _compiled(flex_attention)


@lru_cache(maxsize=1)
def _create_block_mask(device: str) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask if device == "cpu" else _compiled(create_block_mask)


def _compiled(function: Any) -> Any:
    import torch._dynamo.config as dynamo

    # After too many compilations dynamo would continue without the compiler, and FlexAttention make the scores of the whole row.
    dynamo.fail_on_recompile_limit_hit = True
    # Dynamic: each micro-batch has a row of another length.
    return torch.compile(function, dynamic=True)


# All layers of a pass use the same mask, or one for layers with a window and one for layers without.
@lru_cache(maxsize=2)
def _blocks(spans: tuple[Span, ...], window: int | None, device: torch.device) -> Any:
    """FlexAttention's mask of a packed row: a token attends to itself and to the tokens before it in its own sequence.

    One small copy to the device; the rest is made there, without waiting for the work under way.
    """
    length = spans[-1].start + sum(spans[-1][1:])
    starts, *parts = copied(torch.tensor(spans).T.contiguous(), device)
    numbers = torch.arange(len(spans), device=device)
    pair = torch.repeat_interleave(numbers, sum(parts), output_size=length)
    inside = torch.arange(length, device=device) - starts[pair]
    is_rejected = inside >= (parts[0] + parts[1])[pair]
    is_chosen = (inside >= parts[0][pair]) & ~is_rejected
    # Positions of the rejected answer continue the prompt's, as in batches/batch.py.
    place = inside - torch.where(is_rejected, parts[1][pair], 0)

    def seen(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        other_answer = is_rejected[q] & is_chosen[k]
        near = True if window is None else place[q] - place[k] < window
        visible: Tensor = (pair[q] == pair[k]) & (q >= k) & ~other_answer & near
        return visible

    return _create_block_mask(device.type)(seen, None, None, length, length, device=device)
