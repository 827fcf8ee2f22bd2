"""Attention over packed pairs whose two answers share one copy of their prompt.

A packed row holds, for each pair, prompt, chosen and rejected tokens one after another. Prompt and chosen answer are an
ordinary causal sequence; the rejected answer's tokens attend to the prompt and to themselves, and not to the chosen one.
So the attention of a pair is two causal calls, whose cost is that of two rows without the second copy of the prompt, and no
mask of the whole row is ever made. The idea is that of prefix sharing for DPO (Wang et al. 2024, 2410.20305).
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from dpo_trainer.batches.batch import Span
from dpo_trainer.runtime.errors import first_line

# The names under which transformers finds it: as calls of SDPA, and as one of FlexAttention.
NAME = "dpo_shared_prompt"
FLEX = "dpo_shared_prompt_flex"

# Attention arguments that are supported here or may be ignored. Any other (caps on scores, sinks, biases, indices of the keys to
# attend to) would be dropped silently, often for long texts alone.
_KNOWN = frozenset({"dropout", "scaling", "is_causal", "position_ids", "use_cache", "output_attentions"})


class UnsupportedAttention(ValueError):
    """The model's attention needs a feature that packing does not support."""


def register() -> None:
    """Make the attention known to transformers. Idempotent."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    for name, function in ((NAME, attention), (FLEX, flex)):
        AttentionInterface.register(name, function)
        # Rows that are not packed (generation, padded batches) get the masks that SDPA gets.
        AttentionMaskInterface.register(name, sdpa_mask)


def enable(causal_lm: Any, *, by_flex: bool = False) -> bool:
    """Make a Hugging Face model use this attention. Returns False and changes nothing if it can't. by_flex: see flex."""
    config = causal_lm.config.get_text_config()
    usable = config._attn_implementation in ("sdpa", NAME, FLEX) and causal_lm._can_set_attn_implementation()
    # Attention in chunks of the text is made by masks, and packed rows have no masks. A convolution would mix the end of one
    # answer into the beginning of the next, too little for the comparison at the start to see in bf16.
    chunked = getattr(config, "attention_chunk_size", None) is not None
    if not usable or chunked or any(isinstance(module, nn.Conv1d) for module in causal_lm.modules()):
        return False
    register()
    causal_lm.set_attn_implementation(FLEX if by_flex else NAME)
    return True


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

    if spans is None:
        if sliding_window is not None:
            options["sliding_window"] = sliding_window
        plain_output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return plain_output
    _check(attention_mask, options)

    def causal(queries: slice, keys: Tensor, values: Tensor, before: int) -> Tensor:
        """Queries that follow `before` keys of their own sequence and attend to these keys and to themselves."""
        wanted = query[:, :, queries]
        count, length = wanted.shape[2], keys.shape[2]
        plain = before == 0 and (sliding_window is None or length <= sliding_window)
        mask = None if plain else _mask(count, length, before, sliding_window, query.device)
        output: Tensor
        output, _ = sdpa_attention_forward(module, wanted, keys, values, mask, **{**options, "is_causal": plain})
        return output

    parts = []
    for start, prompt, chosen, rejected in spans:
        first, second, end = start + prompt, start + prompt + chosen, start + prompt + chosen + rejected
        one = slice(start, second)
        parts.append(causal(one, key[:, :, one], value[:, :, one], 0))
        if rejected:
            shared, own = slice(start, first), slice(second, end)
            keys = torch.cat([key[:, :, shared], key[:, :, own]], dim=2)
            values = torch.cat([value[:, :, shared], value[:, :, own]], dim=2)
            parts.append(causal(own, keys, values, prompt))
    return torch.cat(parts, dim=1), None


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
    """The same in one call for all pairs; the kernel skips the blocks that no token attends to (2410.20305).

    FlexAttention has no backward pass on CPUs: there `attention` is used when gradients are needed. On GPUs it is compiled at its first use.
    """
    if spans is None or (query.device.type == "cpu" and torch.is_grad_enabled()):
        return attention(
            module, query, key, value, attention_mask, spans=spans, sliding_window=sliding_window, **options
        )
    _check(attention_mask, options)
    found = _flex_attention(query.device.type)(
        query,
        key,
        value,
        block_mask=_blocks(spans, sliding_window, query.device),
        scale=options.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found.transpose(1, 2).contiguous(), None


def flex_problem(device: torch.device) -> str | None:
    """Why FlexAttention can't be used on a GPU, such as a container without the C compiler that Triton asks for; None when it can."""
    if device.type == "cpu":
        return None
    try:
        # Forward and backward are compiled apart.
        query, key, value = (torch.ones(1, 2, 128, 64, device=device, requires_grad=True) for _ in range(3))
        blocks = _blocks(((0, 64, 32, 32),), None, device)
        _flex_attention(device.type)(query, key, value, block_mask=blocks).sum().backward()
    except Exception as error:  # whatever compilers raise
        return f"{type(error).__name__}: {first_line(error)}"
    return None


@lru_cache(maxsize=1)
def _flex_attention(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Rows have a length of their own in each micro-batch.
    return flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=True)


# All layers of a pass use the same mask, or one for layers with a window and one for layers without.
@lru_cache(maxsize=2)
def _blocks(spans: tuple[Span, ...], window: int | None, device: torch.device) -> Any:
    """FlexAttention's mask of a packed row: a token attends to itself and to the tokens before it in its own sequence."""
    from torch.nn.attention.flex_attention import create_block_mask

    parts = torch.tensor([span[1:] for span in spans])
    pair = torch.repeat_interleave(torch.arange(len(spans)), parts.sum(dim=1)).to(device)
    side = torch.repeat_interleave(torch.arange(3).repeat(len(spans)), parts.flatten()).to(device)
    # Positions of the rejected answer continue the prompt's, as in batches/batch.py.
    runs = [run for _, p, c, r in spans for run in (torch.arange(p + c), torch.arange(p, p + r))]
    place = torch.cat(runs).to(device)

    def seen(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        other_answer = (side[q] == 2) & (side[k] == 1)
        near = True if window is None else place[q] - place[k] < window
        return (pair[q] == pair[k]) & (q >= k) & ~other_answer & near

    length = len(pair)
    return create_block_mask(seen, None, None, length, length, device=device, _compile=device.type == "cuda")


def _check(attention_mask: Tensor | None, options: dict[str, Any]) -> None:
    """Raises UnsupportedAttention when a model's attention needs an unsupported argument."""
    if wanted := sorted(name for name, value in options.items() if value is not None and name not in _KNOWN):
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
