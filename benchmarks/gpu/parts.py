"""The parts of the check. Each yields its findings; torch is imported by them alone."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.checks import LENGTHS, Check, Setting, seconds_of
from benchmarks.gpu.speed import speed, trl


def facts(setting: Setting) -> Iterator[Check]:
    """Versions, and what products and copies reach."""
    import torch

    yield Check("facts", "torch", torch.__version__)
    if setting.device == "cuda":
        yield Check("facts", "GPU", torch.cuda.get_device_name())
        yield Check("facts", "CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
        yield Check("facts", "order of attention kernels", str(torch._C._get_sdp_priority_order()))
    size = 256 if setting.tiny else 8192
    dtype = torch.bfloat16 if setting.device == "cuda" else torch.float32
    a = torch.randn(size, size, device=setting.device, dtype=dtype)
    big = torch.zeros(1 << (20 if setting.tiny else 30), device=setting.device, dtype=torch.uint8)
    other = torch.empty_like(big)
    for _ in range(2):  # the first one warms up
        product, copy = seconds_of(setting.device, lambda: a @ a), seconds_of(setting.device, lambda: other.copy_(big))
    yield Check("facts", f"product of {size}³, TFLOP/s", 2 * size**3 / product / 1e12, 0.0, least=True)
    yield Check("facts", "copy, GB/s", 2 * big.numel() / copy / 1e9, 0.0, least=True)


def attention(setting: Setting) -> Iterator[Check]:
    """Each kernel against SDPA in float32, forward and backward, with and without a window; and its time for rows of new lengths."""
    import torch

    from dpo_trainer.model.attention import kernels

    device = torch.device(setting.device)
    dtype = torch.bfloat16 if setting.device == "cuda" else torch.float32
    kernels.configure(device)
    usable: tuple[kernels.Kernel, ...] = ("sdpa", "varlen", "flex") if setting.device == "cuda" else ("sdpa",)
    shapes = ((4, 2, 16),) if setting.tiny else ((14, 2, 64), (32, 8, 128), (8, 4, 256))
    for heads, keys, size in shapes:
        for kernel in usable:
            for window in (None, 40):
                shape = kernels.HeadShape(heads, keys, size, size, window)
                error = kernels.difference(kernel, shape, device, dtype)
                name = f"{kernel} {heads}/{keys}×{size}{' windowed' if window else ''}, difference"
                yield Check("attention", name, error, 1e-2 if setting.device == "cuda" else 1e-5)
            shape = kernels.HeadShape(heads, keys, size, size, None)
            times = [_seconds_of_row(kernel, shape, turn, device, dtype) for turn in range(3 if setting.tiny else 20)]
            name = f"{kernel} {heads}/{keys}×{size}, ms a row of new lengths"
            yield Check("attention", name, 1000 * sorted(times)[len(times) // 2])


def _seconds_of_row(kernel: Any, shape: Any, turn: int, device: Any, dtype: Any) -> float:
    """Time of a kernel, forward and backward, on a packed row whose lengths no other turn has."""
    import torch

    from dpo_trainer.batches.sequences import Span, sequences_of
    from dpo_trainer.model.attention import kernels

    spans, at = [], 0
    for prompt, chosen, rejected in LENGTHS[: 3 + turn % 4]:
        spans.append(Span(at, prompt + turn, chosen + turn % 5, rejected))
        at += sum(spans[-1][1:])
    inputs = [
        torch.randn(1, count, at, shape.size, device=device, dtype=dtype, requires_grad=True)
        for count in (shape.heads, shape.key_value_heads, shape.key_value_heads)
    ]
    call = kernels.call_of(kernel, shape, tuple(spans), sequences_of(tuple(spans)).to(device))
    return seconds_of(device.type, lambda: call(*inputs).float().sum().backward())


def head(setting: Setting) -> Iterator[Check]:
    """Log-probs and gradients of the output head in chunks against float64, and what it reaches."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dpo_trainer.model.head import OutputHead, stride

    hidden, vocabulary, rows = (32, 128, 50) if setting.tiny else (1536, 151_936, 8192)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    dtype = torch.bfloat16 if setting.device == "cuda" else torch.float32
    model = LlamaForCausalLM(config).to(setting.device, dtype)
    made = OutputHead(model, "model")
    states = torch.randn(rows, hidden, device=setting.device, dtype=dtype, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,), device=setting.device)
    some = slice(0, min(rows, 256))
    weight = model.lm_head.weight.detach().double()
    exact = (states[some].detach().double() @ weight.T).log_softmax(-1).gather(1, targets[some, None])[:, 0]
    output, every = model.model(input_ids=targets[None, :4]), stride(rows)
    for chunk in (64 << 10 if setting.tiny else 256 << 20, 1 << 30, None):
        made.chunk_bytes = chunk
        found = made(output, states, targets, every)[0]
        name = f"chunks of {chunk >> 20} MiB" if chunk else "all at once"
        error = ((found[some].double() - exact).norm() / exact.norm()).item()
        yield Check("head", f"{name}, difference", error, 1e-2 if setting.device == "cuda" else 1e-5)
        seconds = seconds_of(setting.device, lambda: made(output, states, targets, every)[0].sum().backward())
        passes = 3 if chunk is None or 4 * vocabulary * rows <= chunk else 4
        yield Check("head", f"{name}, TFLOP/s", 2 * passes * rows * hidden * vocabulary / seconds / 1e12)


def train(setting: Setting) -> Iterator[Check]:
    """A small job on this device and on the CPU: equal losses; stopped and resumed: equal bits; the first loss ln 2, also with adapters."""
    from benchmarks.gpu.jobs import losses_of

    folder = Path(setting.folder)
    steps = 4 if setting.tiny else 6
    lora = {"type": "lora", "rank": 4, "alpha": 8, "targetModules": ["all-linear"]}
    here = losses_of(folder / "here", setting.device, steps)
    cpu = losses_of(folder / "cpu", "cpu", steps)
    yield Check("train", "losses in fp32, difference from the CPU's", _apart(here, cpu), 1e-4)
    stopped = folder / "stopped"
    losses_of(stopped, setting.device, steps, stop=2)
    yield Check("train", "resumed, difference", _apart(losses_of(stopped, setting.device, steps, attempt=2), here), 0.0)
    bf16 = losses_of(folder / "bf16", setting.device, steps, precision="bf16")
    yield Check("train", "bf16, difference from fp32", _apart(bf16, here), 2e-2)
    adapters = losses_of(folder / "lora", setting.device, steps, adapter=lora)
    for name, losses in (("all weights", here), ("bf16", bf16), ("LoRA", adapters)):
        yield Check("train", f"first loss of {name}, from ln 2", abs(losses[0] - math.log(2)), 2e-2)


def _apart(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


# In the order of what they are worth.
PARTS: dict[str, Callable[[Setting], Iterator[Check]]] = {
    "facts": facts, "attention": attention, "head": head, "train": train, "speed": speed, "trl": trl,
}  # fmt: skip
