"""Which kernel computes the attention of packed pairs, and whether it gives the right numbers on this device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dpo_trainer.batches.sequences import Sequences, Span, sequences_of
from dpo_trainer.model.attention.flex import flex
from dpo_trainer.model.attention.sdpa import attention
from dpo_trainer.model.attention.varlen import varlen
from dpo_trainer.runtime.errors import first_line

Kernel = Literal["sdpa", "varlen", "flex"]
SDPA: Kernel = "sdpa"
FUNCTIONS: dict[Kernel, Any] = {"sdpa": attention, "varlen": varlen, "flex": flex}
# The names under which transformers finds them.
NAMES: dict[Kernel, str] = {
    "sdpa": "dpo_shared_prompt",
    "varlen": "dpo_shared_prompt_varlen",
    "flex": "dpo_shared_prompt_flex",
}

# Three pairs of unequal parts, longer than a block of any kernel: what is compiled for them is what real rows use.
_PROBE = (Span(0, 150, 90, 70), Span(310, 1, 120, 61), Span(492, 64, 40, 0))
_PROBE_LENGTH = 596
# Attributes of an attention layer by which its scores are changed, see scored.py.
_CHANGED_BY = {"softcap": "attn_logit_softcapping", "s_aux": "sinks"}
# How far a kernel in 16 bits may be from float32, as a share of the norm.
_TOLERANCE = 2e-2


@dataclass(frozen=True)
class HeadShape:
    """What a kernel has to support: numbers of heads, their sizes, the window of a layer, and what changes its scores."""

    heads: int
    key_value_heads: int
    size: int
    value_size: int
    window: int | None
    changes: frozenset[str] = frozenset()


def configure(device: torch.device) -> None:
    """Settings for attention on a device, before the first forward pass.

    cuDNN's attention, which torch prefers on Hopper and Blackwell, makes a plan for each new shape, 20 to 40 ms of a core. Pairs and rows
    have a length of their own in each call.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def register() -> None:
    """Make the kernels known to transformers. Idempotent."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    for kernel, name in NAMES.items():
        AttentionInterface.register(name, FUNCTIONS[kernel])
        # Rows that are not packed (generation, padded batches) get the masks that SDPA gets.
        AttentionMaskInterface.register(name, sdpa_mask)


def enable(causal_lm: Any, kernel: Kernel = "sdpa") -> bool:
    """Make a Hugging Face model use a kernel. Returns False and changes nothing if it can't."""
    config = causal_lm.config.get_text_config()
    implementation = config._attn_implementation
    # transformers takes its eager attention for models whose scores are changed: SDPA would leave that out.
    changed = implementation == "eager" and not causal_lm._supports_sdpa and _all_change_scores(causal_lm)
    usable = (implementation in ("sdpa", *NAMES.values()) or changed) and causal_lm._can_set_attn_implementation()
    # Attention in chunks of the text is made by masks, and packed rows have no masks. A convolution would mix the end of one
    # answer into the beginning of the next, too little for the comparison at the start to see in bf16.
    chunked = getattr(config, "attention_chunk_size", None) is not None
    if not usable or chunked or any(isinstance(module, nn.Conv1d) for module in causal_lm.modules()):
        return False
    register()
    causal_lm.set_attn_implementation(NAMES[kernel])
    return True


def _all_change_scores(causal_lm: nn.Module) -> bool:
    """Whether each attention layer changes its scores in a way that is known."""
    shapes = head_shapes(causal_lm)
    return bool(shapes) and all(shape.changes for shape in shapes)


def preferred(device: torch.device, dtype: torch.dtype) -> Kernel:
    """The fastest kernel, where the model's attention is SDPA."""
    return "varlen" if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) else "sdpa"


def head_shapes(causal_lm: nn.Module) -> set[HeadShape]:
    """Shapes of a model's attention layers, by the attributes that transformers gives them."""
    found = set()
    for module in causal_lm.modules():
        config: Any = getattr(module, "config", None)
        size = getattr(module, "qk_head_dim", getattr(module, "head_dim", None))
        if not isinstance(size, int) or not hasattr(module, "num_key_value_groups"):
            continue
        heads, groups = config.get_text_config().num_attention_heads, int(module.num_key_value_groups)  # type: ignore[arg-type]  # Module's attributes
        # Some layers have a window of their own, others take the model's.
        window = getattr(module, "sliding_window", getattr(config, "sliding_window", None))
        value_size = getattr(module, "v_head_dim", size)
        changes = {name for name, attribute in _CHANGED_BY.items() if getattr(module, attribute, None) is not None}
        window = window if isinstance(window, int) else None
        found.add(HeadShape(heads, heads // groups, size, value_size, window, frozenset(changes)))
    return found


def problem(kernel: Kernel, shapes: set[HeadShape], device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a kernel can't be used, such as a container without the C compiler that Triton asks for; None when it can.

    Runs each shape forward and backward on a small row, which also compiles what has to be compiled, and compares with SDPA in float32.
    """
    for shape in shapes:
        if shape.changes and kernel != SDPA:
            return f"its attention takes {', '.join(sorted(shape.changes))}, for which scores are made pair by pair"
        try:
            error = difference(kernel, shape, device, dtype)
        except Exception as failure:  # whatever compilers and kernels raise
            return f"{type(failure).__name__}: {first_line(failure)}"
        if not error < _TOLERANCE:
            return f"its numbers differ from SDPA's by {error:.1%} for {shape}"
    return None


def call_of(
    kernel: Kernel, shape: HeadShape, spans: tuple[Span, ...], sequences: Sequences
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A kernel as a function of query, key and value of a packed row. sequences: of the spans, on the tensors' device."""
    module = nn.Module()
    module.num_key_value_groups = shape.heads // shape.key_value_heads  # type: ignore[assignment]  # as transformers does
    module.is_causal = True  # type: ignore[assignment]
    options: dict[str, Any] = {"spans": spans, "sliding_window": shape.window, "dropout": 0.0}
    if kernel == "varlen":
        options["sequences"] = sequences

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        placeholder = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=query.device)
        output: Tensor = FUNCTIONS[kernel](module, query, key, value, placeholder, **options)[0]
        return output

    return call


def difference(kernel: Kernel, shape: HeadShape, device: torch.device, dtype: torch.dtype) -> float:
    """Largest difference of a kernel's output and gradients, and of its output without gradients, from SDPA in float32 on a small row.

    Norm of the difference as a share of the norm. Raises what compilers and kernels raise.
    """
    sequences = sequences_of(_PROBE).to(device)
    call, right_call = (call_of(name, shape, _PROBE, sequences) for name in (kernel, SDPA))
    generator = torch.Generator().manual_seed(0)
    sizes = ((shape.heads, shape.size), (shape.key_value_heads, shape.size), (shape.key_value_heads, shape.value_size))
    inputs = [
        torch.randn(1, heads, _PROBE_LENGTH, size, generator=generator).to(device, dtype).requires_grad_()
        for heads, size in sizes
    ]
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    with torch.no_grad():
        quiet = call(*inputs)
    output = call(*inputs)
    reference = right_call(*exact)
    weights = torch.randn(reference.shape, generator=generator).to(device)
    gradients = torch.autograd.grad((output.float() * weights).sum(), inputs)
    wanted = torch.autograd.grad((reference * weights).sum(), exact)
    pairs = [(output, reference), (quiet, reference), *zip(gradients, wanted, strict=True)]
    largest: float = max(((found.float() - right).norm() / right.norm()).item() for found, right in pairs)
    return largest
