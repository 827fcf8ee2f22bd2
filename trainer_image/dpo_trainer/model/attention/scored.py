"""Attention whose scores are changed before the softmax, which torch's scaled dot-product attention has no form for.

Gemma 2 (2408.00118) caps scores by a tanh; gpt-oss (2508.10925) has a learnt score for each head, a sink, that takes its share of the softmax and gives
nothing. Scores are made as a tensor, as transformers' eager attention does.
"""

from typing import Any

import torch
from torch import Tensor, nn

# Arguments of an attention call that change its scores.
CHANGES = frozenset({"softcap", "s_aux"})


def changes_scores(options: dict[str, Any]) -> bool:
    """Whether an attention call has such an argument."""
    return any(options.get(name) is not None for name in CHANGES)


def scored(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    is_causal: bool | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """query: [batch, heads, queries, head_dim]. key, value: [batch, key-value heads, keys, head_dim]. mask: bool, which keys each query sees; None for all, or
    with is_causal (default: the module's own) for those up to its own place. softcap: of the scores. s_aux: sinks, [heads].

    The softmax is taken in float32. Returns [batch, queries, heads, head_dim].
    """
    groups = query.shape[1] // key.shape[1]
    keys, values = (tensor.repeat_interleave(groups, dim=1) if groups > 1 else tensor for tensor in (key, value))
    scores = query @ keys.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    queries, count = scores.shape[-2:]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if mask is None and causal and queries > 1:
        mask = torch.ones(queries, count, dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if s_aux is not None:
        sinks = s_aux.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    shares = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)[..., :count]
    shares = nn.functional.dropout(shares, p=dropout, training=module.training)
    return (shares @ values).transpose(1, 2).contiguous()
