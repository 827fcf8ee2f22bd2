"""Kernels for packed pairs: the calls of SDPA against slices of the row, and the variable-length call's mapping in float64."""

from functools import partial
from typing import Any

import pytest

from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

# Name -> parts of the pairs (prompt, chosen, rejected), window, key-value heads of four heads.
ROWS: dict[str, tuple[list[tuple[int, int, int]], int | None, int]] = {
    "shared": ([(7, 5, 9), (1, 12, 3), (20, 1, 1), (3, 30, 14)], None, 4),
    "plain": ([(7, 5, 0), (7, 9, 0), (1, 12, 0)], None, 4),
    "windowed": ([(7, 5, 9), (1, 12, 3), (20, 4, 11)], 6, 4),
    "a window longer than the row": ([(7, 5, 9), (3, 2, 2)], 60, 4),
    "grouped queries": ([(7, 5, 9), (1, 12, 3)], None, 2),
    "one key-value head, windowed": ([(7, 5, 9), (1, 12, 3)], 4, 1),
    "unpaired": ([(7, 0, 9), (5, 8, 0), (4, 0, 3), (1, 2, 2)], None, 2),
}


def modern(
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Any:
    """What torch documents of varlen_attn from 2.12 on, with dense masks: windows count from the end of keys and queries."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    assert enable_gqa or query.shape[1] == key.shape[1]
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    outputs = []
    bounds = zip(
        cu_seq_q.tolist()[:-1], cu_seq_q.tolist()[1:], cu_seq_k.tolist()[:-1], cu_seq_k.tolist()[1:], strict=True
    )
    for first_q, end_q, first_k, end_k in bounds:
        assert 0 < end_q - first_q <= max_q
        assert 0 < end_k - first_k <= max_k
        groups = query.shape[1] // key.shape[1]
        queries = query[first_q:end_q].transpose(0, 1)
        keys, values = (t[first_k:end_k].transpose(0, 1).repeat_interleave(groups, 0) for t in (key, value))
        ahead = torch.arange(keys.shape[1])[None] - torch.arange(queries.shape[1])[:, None]
        ahead = ahead - (keys.shape[1] - queries.shape[1])
        left, right = (torch.inf if side < 0 else side for side in window_size)
        seen = (ahead <= right) & (-ahead <= left)
        outputs.append(scaled_dot_product_attention(queries, keys, values, seen, scale=scale).transpose(0, 1))
    assert first_q < end_q == len(query)
    assert end_k == len(key)
    return torch.cat(outputs)


def early(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, is_causal: bool = False
) -> Any:
    """The same as in torch 2.10: without windows, scales and groups of heads."""
    window = (-1, 0) if is_causal else (-1, -1)
    return modern(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size=window)


def inputs(name: str, dtype: str) -> tuple[Any, Any, list[Any], Any, Any]:
    """A module, spans, query, key and value, weights of the output, and the window."""
    import torch

    from dpo_trainer.batches.sequences import Span

    parts, window, key_heads = ROWS[name]
    spans, at = [], 0
    for part in parts:
        spans.append(Span(at, *part))
        at += sum(part)
    module: Any = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 4 // key_heads
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator, dtype=getattr(torch, dtype))

    tensors = [random(1, heads, at, 16).requires_grad_() for heads in (4, key_heads, key_heads)]
    return module, tuple(spans), tensors, random(1, at, 4, 16), window


def by_mask(spans: Any, query: Any, key: Any, value: Any, window: int | None) -> Any:
    """Packed attention by one mask of the whole row: it states for each token what it attends to."""
    import torch

    tokens = [
        (pair, side, place)
        for pair, (_, p, c, r) in enumerate(spans)
        for side, place in [(0, i) for i in range(p)] + [(1, p + i) for i in range(c)] + [(2, p + i) for i in range(r)]
    ]

    def sees(mine: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
        near = 0 <= mine[2] - other[2] < (window or 1 << 30)
        return mine[0] == other[0] and other[1] in (0, mine[1]) and near

    mask = torch.tensor([[sees(mine, other) for other in tokens] for mine in tokens])
    groups = query.shape[1] // key.shape[1]
    keys, values = (t.repeat_interleave(groups, 1) for t in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values, mask).transpose(1, 2)


def differences() -> dict[str, dict[str, float]]:
    """Row -> kernel -> largest difference of output and gradients from the mask of the whole row, float64."""
    import torch

    from dpo_trainer.batches.sequences import sequences_of
    from dpo_trainer.model.attention.sdpa import attention
    from dpo_trainer.model.attention.varlen import adapted, row_attention

    found = {}
    for name in ROWS:
        module, spans, tensors, weights, window = inputs(name, "float64")
        placeholder, sequences = torch.ones(1, 1, 1, 1, dtype=torch.bool), sequences_of(spans)
        by_row = partial(row_attention, sequences=sequences, window=window, scale=16**-0.5)
        outputs = {
            "sdpa": attention(module, *tensors, placeholder, spans=spans, sliding_window=window, dropout=0.0)[0],
            "varlen": by_row(adapted(modern), *tensors),
        }
        if window is None or window > 40:
            outputs["varlen of torch 2.10"] = by_row(adapted(early), *tensors)
        right = by_mask(spans, *tensors, window)
        wanted = torch.autograd.grad(right, tensors, weights)
        found[name] = {
            kernel: max(
                (one - other).abs().max().item()
                for one, other in zip(
                    (output, *torch.autograd.grad(output, tensors, weights)), (right, *wanted), strict=True
                )
            )
            for kernel, output in outputs.items()
        }
    return found


@pytest.fixture(scope="module")
def different() -> dict[str, dict[str, float]]:
    return on_ranks(1, differences)[0]


@pytest.mark.parametrize("name", ROWS)
def test_kernels_give_the_numbers_of_one_mask(different: dict[str, Any], name: str):
    assert len(different[name]) >= 2
    assert max(different[name].values()) < 1e-12, different[name]


def slices_and_split() -> dict[str, Any]:
    """Whether both give equal bits, and the backward pass's row-long tensors with few and with many pairs."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from benchmarks.attention import by_slices
    from dpo_trainer.batches.sequences import Span
    from dpo_trainer.model.attention.sdpa import attention

    placeholder = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    equal = {}
    for name in ROWS:
        module, spans, tensors, weights, window = inputs(name, "float32")
        old = by_slices(module, *tensors, spans, window)
        new = attention(module, *tensors, placeholder, spans=spans, sliding_window=window, dropout=0.0)[0]
        both = [(o, *torch.autograd.grad(o, tensors, weights)) for o in (old, new)]
        equal[name] = all(torch.equal(one, other) for one, other in zip(*both, strict=True))

    class RowLong(TorchDispatchMode):
        """Counts operations that make a tensor as long as the row."""

        count, length = 0, 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            self.count += isinstance(made, torch.Tensor) and self.length in made.shape[1:3]
            return made

    counts = []
    for pairs in (2, 9):
        module, _, tensors, _, _ = inputs("shared", "float32")
        length = 21 * pairs
        query, key, value = (t.detach()[:, :, :1].expand(1, 4, length, 16).clone().requires_grad_() for t in tensors)
        spans = tuple(Span(21 * pair, 7, 5, 9) for pair in range(pairs))
        output = attention(module, query, key, value, placeholder, spans=spans, dropout=0.0)[0]
        with RowLong() as mode:
            mode.length = length
            torch.autograd.grad(output.sum(), (query, key, value))
        counts.append(mode.count)
    return {"equal": equal, "row-long tensors": counts}


def test_one_split_gives_the_bits_of_slices():
    [found] = on_ranks(1, slices_and_split)
    assert found["equal"] == dict.fromkeys(ROWS, True)
    few, many = found["row-long tensors"]
    assert few == many > 0, "the backward pass makes more tensors of the whole row for more pairs"


def kernels_of_devices() -> dict[str, Any]:
    """What is chosen and set for devices, and what the check of a kernel says of good and of wrong ones."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpo_trainer.model.attention import kernels
    from tests.numerics.model.test_packing import PACKED

    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    kernels.configure(cpu)
    unchanged = torch.backends.cuda.cudnn_sdp_enabled()
    kernels.configure(gpu)
    chosen = {f"{d.type} {t}": kernels.preferred(d, t) for d in (cpu, gpu) for t in (torch.float32, torch.bfloat16)}
    config = AutoConfig.for_model(**PACKED["mistral, a window shorter than the answers"])
    shapes = kernels.head_shapes(AutoModelForCausalLM.from_config(config))
    good = kernels.problem("sdpa", shapes, cpu, torch.bfloat16)
    absent = kernels.problem("varlen", shapes, cpu, torch.bfloat16)

    def shifted(*args: Any, **options: Any) -> Any:
        return kernels.attention(*args, **options)[0].roll(1, dims=1), None

    def changed(settings: Any) -> str | None:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
        return kernels.problem("varlen", kernels.head_shapes(model), gpu, torch.bfloat16)

    kernels.FUNCTIONS["flex"] = shifted
    return {
        "cudnn": (before, unchanged, torch.backends.cuda.cudnn_sdp_enabled()),
        "chosen": chosen,
        "shapes": [(s.heads, s.key_value_heads, s.window) for s in shapes],
        "good": good,
        "absent": absent,
        "wrong": kernels.problem("flex", shapes, cpu, torch.float32),
        "changed": [changed(PACKED[name]) for name in ("gemma2, capped scores", "gpt-oss, sinks")],
    }


def test_kernels_are_checked_before_they_are_used():
    [found] = on_ranks(1, kernels_of_devices)
    texts = [f"its attention takes {name}, for which scores are made pair by pair" for name in ("softcap", "s_aux")]
    assert found["changed"] == texts
    assert found["cudnn"] == (True, True, False)
    assert found["chosen"] == {
        "cpu torch.float32": "sdpa",
        "cpu torch.bfloat16": "sdpa",
        "cuda torch.float32": "sdpa",
        "cuda torch.bfloat16": "varlen",
    }
    assert [shape[2] for shape in found["shapes"]] == [6]
    assert found["good"] is None
    assert "Error" in found["absent"]
    assert "its numbers differ from SDPA's by" in found["wrong"]
