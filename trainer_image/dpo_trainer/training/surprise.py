"""How much the data's answers surprise the policy before its first update.

The surprise of some tokens is their negative log-likelihood over the entropy of the distributions that predict them. It is 1 for what a
model writes itself at temperature 1, whatever the model. The first tokens of an answer show whether the chat template, and the place
where prompt and answer meet, are the model's; the rest shows whether the language is.
"""

import math
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from dpo_operator.api.training import Budget
from dpo_trainer.batches.batch import MicroBatch
from dpo_trainer.batches.packing import Round
from dpo_trainer.batches.sampler import Indices
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.engine.engine import Engine, Scored
from dpo_trainer.losses.metrics import SIDES
from dpo_trainer.training.examples import Examples
from dpo_trainer.training.passes import logps_table

# Tokens of an answer that count as its first ones.
FIRST = 4
# Pairs to measure where the passes are made anyway, and in passes of their own: the most, and the least.
_WITH_REFERENCE, _MOST, _LEAST = 512, 256, 128
# Share of a run's passes that those of their own may take. A pass without gradients is a third of one with them.
_SHARE, _PASSES = 0.01, 3
# An answer that the model is sure of has an entropy near 0, nats.
_SMALLEST_ENTROPY = 1e-6


class Surprise:
    """Collects this rank's part of the figures while training pairs go through the policy; see training.passes.Look."""

    def __init__(self) -> None:
        # By side: ratios of the first tokens and of the rest, None where an answer has none; and sums over all tokens.
        self._ratios: list[list[list[float | None]]] = [[[], []] for _ in SIDES]
        self._sums = torch.zeros(len(SIDES), 3, dtype=torch.float64)
        self._pairs = 0

    def rounds(self, planned: list[Round]) -> set[int]:
        """Which rounds to look at: spread evenly, as they go from large to small, for about as many pairs as are wanted."""
        pairs = sum(len(group) for groups in planned for group in groups)
        return set(range(0, len(planned), max(1, pairs // _WITH_REFERENCE)))

    def add(self, batch: MicroBatch, scored: Scored) -> None:
        """Add a batch of this rank. scored: with every token."""
        real = (batch.weight > 0).cpu().tolist()
        for number, answer in enumerate(answer_sums(batch, scored)):
            if real[number // 2] and (tokens := answer[:, 3].sum().item()):
                side = number % 2
                for part, (nll, entropy, _, count) in enumerate(answer.tolist()):
                    ratio = nll / max(entropy, _SMALLEST_ENTROPY) if count else None
                    self._ratios[side][part].append(ratio if ratio is not None and math.isfinite(ratio) else None)
                self._sums[side] += torch.tensor([answer[:, 0].sum(), answer[:, 2].sum(), tokens], dtype=torch.float64)
        self._pairs += sum(real)

    def figures(self, ranks: Ranks) -> dict[str, float]:
        """Medians over the answers of all ranks, token accuracy and negative log-likelihood per token. Collective.

        Empty before any batch. A figure without data is NaN.
        """
        parts = ranks.gather({"ratios": self._ratios, "sums": self._sums.tolist(), "pairs": self._pairs})
        pairs = sum(part["pairs"] for part in parts)
        if not pairs:
            return {}
        found = {"surprise/pairs": float(pairs)}
        for side, name in enumerate(SIDES):
            for part, where in enumerate((f"first{FIRST}", "rest")):
                values = [v for one in parts for v in one["ratios"][side][part] if v is not None]
                found[f"surprise/{where}_{name}"] = median(values) if values else math.nan
            nll, hits, tokens = (sum(one["sums"][side][i] for one in parts) for i in range(3))
            found[f"token_accuracy/{name}"] = hits / tokens if tokens else math.nan
            found[f"nll_per_token/{name}"] = nll / tokens if tokens and math.isfinite(nll) else math.nan
        return found


def answer_sums(batch: MicroBatch, scored: Scored) -> torch.Tensor:
    """Sums over the first tokens of each answer and over the rest: float64 [2*pairs, 2, 4], on the CPU.

    scored: with every token. The four are negative log-likelihood, entropy, tokens that are the most likely one, and tokens; answers are
    chosen and rejected of the first pair, of the second, and so on.
    """
    tokens, answers = scored.tokens, 2 * len(batch.pairs)
    segment = tokens.segment
    place = torch.arange(len(segment), device=segment.device)
    begins = torch.ones_like(segment, dtype=torch.bool)
    begins[1:] = segment[1:] != segment[:-1]
    within = place - torch.where(begins, place, torch.zeros_like(place)).cummax(dim=0).values
    row = 2 * segment + (within >= FIRST)
    values = torch.stack([-tokens.logps, tokens.entropy, tokens.top1, torch.ones_like(tokens.top1)], dim=1)
    found = torch.zeros(2 * batch.segments, 4, dtype=torch.float64, device=segment.device).index_add(0, row, values)
    return found[: 2 * answers].view(answers, 2, 4).cpu()


def measure(
    surprise: Surprise,
    engine: Engine,
    examples: Examples,
    budget: Budget,
    seen: int,
    after_each: Callable[[int], None],
) -> None:
    """Look at some of the pairs in passes of their own. Collective. seen: pairs that the whole run trains on, repeats counted."""
    logps_table(
        engine,
        examples.data,
        budget=budget,
        indices=some_of(len(examples.data), seen),
        after_each=after_each,
        look=surprise,
    )


def some_of(pairs: int, seen: int) -> Indices:
    """Pairs to look at in passes of their own, spread evenly: few enough for their share of the run, but enough for a median."""
    count = min(pairs, _MOST, max(_LEAST, int(_SHARE * _PASSES * seen)))
    return np.unique(np.linspace(0, pairs - 1, count).round().astype(np.int64))
