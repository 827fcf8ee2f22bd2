"""Backward pass of packed attention as rows grow: `make bench-attention`.

Both sides run in one process on one thread, in turns: the trainer's, and slices of the whole row for each pair, as it was first
written. Their outputs and gradients have to be equal to the last bit.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

# Pairs in a row, and tokens of each pair's prompt, chosen and rejected answer.
ROWS = ((3, (100, 70, 70)), (17, (100, 70, 70)), (68, (100, 70, 70)), (272, (8, 8, 8)))
# Of queries, of keys, and their size.
HEADS = (8, 8, 32)


def by_slices(module: Any, query: Any, key: Any, value: Any, spans: Any, window: int | None = None) -> Any:
    """Packed attention in which each pair takes its part of the whole row. Arguments and result as sdpa.attention."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def causal(wanted: Any, keys: Any, values: Any, before: int) -> Any:
        places = torch.arange(before, before + wanted.shape[2])[:, None] - torch.arange(keys.shape[2])
        plain = before == 0 and (window is None or keys.shape[2] <= window)
        seen = (places >= 0) & ((places < window) if window is not None else True)
        mask = None if plain else seen[None, None]
        return sdpa_attention_forward(module, wanted, keys, values, mask, dropout=0.0, is_causal=plain)[0]

    parts = []
    for start, prompt, chosen, rejected in spans:
        one = slice(start, start + prompt + chosen)
        parts.append(causal(query[:, :, one], key[:, :, one], value[:, :, one], 0))
        if rejected:
            shared, own = slice(start, start + prompt), slice(one.stop, one.stop + rejected)
            keys, values = (torch.cat([t[:, :, shared], t[:, :, own]], dim=2) for t in (key, value))
            parts.append(causal(query[:, :, own], keys, values, prompt))
    return torch.cat(parts, dim=1)


def measure(pairs: int, parts: tuple[int, int, int], heads: tuple[int, int, int], times: int) -> dict[str, Any]:
    """Least processor time of a backward pass, by side, seconds; and whether outputs and gradients are equal.

    parts: tokens of prompt, chosen and rejected answer. heads: of queries, of keys, and their size.
    """
    import torch

    from dpo_trainer.batches.sequences import Span
    from dpo_trainer.model.attention.sdpa import attention

    torch.set_num_threads(1)
    module: Any = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, heads[0] // heads[1]
    spans = tuple(Span(number * sum(parts), *parts) for number in range(pairs))
    length, placeholder = pairs * sum(parts), torch.ones(1, 1, 1, 1, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, count, length, heads[2], generator=generator).requires_grad_()
        for count in (heads[0], heads[1], heads[1])
    ]
    weights = torch.randn(1, length, heads[0], heads[2], generator=generator)
    sides: dict[str, Callable[[], Any]] = {
        "slices": lambda: by_slices(module, *inputs, spans),
        "split": lambda: attention(module, *inputs, placeholder, spans=spans, dropout=0.0, is_causal=True)[0],
    }
    seconds, results = dict.fromkeys(sides, float("inf")), {}
    for _ in range(times + 1):  # the first one warms up
        for name, forward in sides.items():
            output = forward()
            began = time.process_time()
            gradients = torch.autograd.grad(output, inputs, weights)
            seconds[name] = min(seconds[name], time.process_time() - began)
            results[name] = (output.detach(), *gradients)
    equal = all(torch.equal(a, b) for a, b in zip(results["slices"], results["split"], strict=True))
    return {**seconds, "equal": equal}


def main() -> None:
    """Print the table; fails when a number differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=len(ROWS), help="only the first ones")
    parser.add_argument("--times", type=int, default=2)
    options = parser.parse_args()
    table = Table(
        "pairs", "tokens of each", "slices, ms", "split, ms", "ratio", "bits",
        title="Backward pass of packed attention, one thread",
    )  # fmt: skip
    right = True
    for pairs, parts in ROWS[: options.rows]:
        found = measure(pairs, parts, HEADS, options.times)
        right &= found["equal"]
        table.add_row(
            str(pairs),
            "+".join(map(str, parts)),
            f"{found['slices'] * 1000:,.1f}",
            f"{found['split'] * 1000:,.1f}",
            f"{found['slices'] / found['split']:.1f}",
            "equal" if found["equal"] else "DIFFERENT",
        )
    Console(width=120).print(table)
    if not right:
        raise SystemExit("outputs or gradients differ")


if __name__ == "__main__":
    main()
