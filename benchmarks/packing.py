"""What packing saves, and what memory grows with: `make bench-packing`.

Tokens are counted; memory is the growth of a process' peak while it trains one step, each in a process of its own.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import inputs
from benchmarks.inputs import REPOSITORY
from tests import tied
from tests.scratch import scratch_folder

STEP, BUDGET = 128, 1024
LONG_PAIR = (1024, 1536, 1536)


def count_tokens(folder: Path) -> Table:
    """Tokens of one epoch through the model, per layout and number of ranks, as a share of the plain pairs' tokens."""

    from dpo_operator.api.training import Budget
    from dpo_trainer.batches.packing import rounds, tokens_of
    from dpo_trainer.batches.sampler import StepPlan
    from dpo_trainer.data.dataset import PairDataset

    lengths = PairDataset.open(folder / "data" / "train").lengths
    plan = StepPlan(len(lengths), STEP, seed=0, shuffle=True)
    pairs_alone = int(tokens_of(lengths, "plain").sum())
    table = Table(
        "layout", "ranks", "tokens", "÷ plain pairs' tokens", "waste", "waiting", "micro-batches",
        title=f"One epoch of {len(lengths):,} pairs, {STEP} a step, micro-batches of {BUDGET:,} tokens",
        caption="waste: tokens of padding and of pairs that only keep a rank in step; waiting: of larger bins on other ranks",
    )  # fmt: skip
    shortest = int(lengths.sum(axis=1).argmin())
    for layout in ("shared", "plain", "off"):
        for ranks in (1, 2, 4, 8):
            run = useful = longest = bins = 0
            for step in range(1, plan.steps_per_epoch + 1):
                for groups in rounds(plan.step(step), lengths, layout=layout, budget=Budget(BUDGET), world_size=ranks):
                    taken = []
                    for group in groups:
                        members = lengths[group] if len(group) else lengths[[shortest]]
                        costs = tokens_of(members, layout)
                        taken.append(int(costs.sum() if layout != "off" else costs.max() * len(costs)))
                        useful += int(tokens_of(members, "plain" if layout == "off" else layout).sum()) * bool(
                            len(group)
                        )
                    run += sum(taken)
                    bins, longest = bins + 1, longest + ranks * max(taken)
            table.add_row(
                layout,
                str(ranks),
                f"{run:,}",
                f"{run / pairs_alone:.3f}",
                f"{run / useful - 1:.1%}",
                f"{longest / run - 1:.1%}",
                f"{bins:,}",
            )
    return table


# Arguments: hidden, layers, vocabulary, lengths of prompt, chosen and rejected answer, pairs, bytes of a chunk (0: all rows at once).
STEP_HERE = """
import json, sys
import numpy as np, torch
torch.set_num_threads(1)
from transformers import LlamaConfig, LlamaForCausalLM
from dpo_trainer.batches.batch import collate
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.model.policy import Policy

hidden, layers, vocabulary, prompt, chosen, rejected, pairs, chunk = map(int, sys.argv[1:])
config = LlamaConfig(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
                     num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=8192)
policy = Policy(LlamaForCausalLM(config).to(torch.float32).train())
policy.pack("shared")
policy.head.chunk_bytes = chunk or None
rng = np.random.default_rng(0)
tokens = [rng.integers(0, vocabulary, size).astype(np.int32) for size in (prompt, chosen, rejected)]
batch = collate(PairDataset.from_pairs([TokenPair(*tokens, i) for i in range(pairs)]), range(pairs), layout="shared")

def peak():  # getrusage would count what the process was before it became this one
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

before = peak()
sums, _ = policy(batch)
sums[:, 0].sum().backward()
print(json.dumps((peak() - before) / 1024))
"""


def measured(*arguments: int) -> float:
    """MiB by which a process' peak grows in one forward and backward pass."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STEP_HERE, *map(str, arguments)]
    done = tied.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(json.loads(done.stdout.splitlines()[-1]))


def memory_of_budgets() -> Table:
    """Growth of the peak with the budget, for short pairs and for one long one."""
    table = Table(
        "budget, tokens", "of pairs of 256 tokens, MiB", "of one pair, MiB", "its logits at once, MiB",
        title="Memory of one forward and backward pass: 6 layers, width 256, vocabulary 50,257",
    )  # fmt: skip
    for budget in (512, 1024, 2048, 4096):
        many = measured(256, 6, 50257, 64, 96, 96, budget // 256, 64 << 20)
        one = measured(256, 6, 50257, budget // 4, budget * 3 // 8, budget * 3 // 8, 1, 64 << 20)
        table.add_row(f"{budget:,}", f"{many:,.0f}", f"{one:,.0f}", f"{budget * 3 / 4 * 50257 * 4 / 2**20:,.0f}")
    return table


def memory_of_a_large_vocabulary() -> Table:
    """One long pair, a head of 128k tokens, in chunks and at once."""
    table = Table(
        "head", "MiB",
        title=f"One pair of {sum(LONG_PAIR):,} tokens, vocabulary 128,000, width 256, 2 layers",
    )  # fmt: skip
    for name, chunk in (("all rows at once", 0), ("chunks of 256 MiB", 256 << 20), ("chunks of 64 MiB", 64 << 20)):
        table.add_row(name, f"{measured(256, 2, 128_000, *LONG_PAIR, 1, chunk):,.0f}")
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    inputs.add_arguments(parser)
    options: Any = parser.parse_args()
    console = Console(width=140)
    with scratch_folder() as scratch:
        inputs.make_data(Path(scratch), options.dialogues, options.tokenizer, pairs=None)
        console.print(count_tokens(Path(scratch)))
    console.print(memory_of_budgets())
    console.print(memory_of_a_large_vocabulary())


if __name__ == "__main__":
    main()
