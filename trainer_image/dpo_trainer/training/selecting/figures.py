"""The pass that ranks: gap and loss of pairs under the present policy."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_operator.api.training import Budget
from dpo_trainer.batches.sampler import Indices
from dpo_trainer.engine.engine import Engine
from dpo_trainer.losses.objective import Objective
from dpo_trainer.training.examples import Examples
from dpo_trainer.training.passes import forward_all, logps_of, plan_rounds


@dataclass(frozen=True)
class Measured:
    """Of some pairs. gaps, losses: float64 [pairs of the data], on the CPU of every rank, 0 for other pairs; see Objective. tokens: that went through the model."""

    gaps: Tensor
    losses: Tensor
    tokens: int


def measure(
    engine: Engine,
    objective: Objective,
    examples: Examples,
    pairs: Indices,
    *,
    budget: Budget,
    after_each: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> Measured | None:
    """Gap and loss of pairs. Collective. budget: of one forward pass. after_each: called with the pairs that all ranks have finished.

    should_stop: asked after each pass, the same answer on every rank; then the pass is aborted and returns None.
    """
    table = torch.zeros(len(examples.data), 2, dtype=torch.float64)
    planned = plan_rounds(engine, examples.data, pairs, budget)
    done = tokens = 0
    batches = forward_all(engine, examples.data, planned, score_prompts=objective.needs_prompt)
    for number, (batch, scored) in enumerate(batches):
        logps = logps_of(batch, scored, examples.reference)
        real = (batch.weight > 0).cpu()
        values = torch.stack([objective.gaps(logps), objective.loss(logps)], dim=1).double()
        table[batch.pairs[real]] = values.cpu()[real]
        tokens += batch.tokens
        done += sum(len(group) for group in planned[number])
        after_each(done)
        if should_stop():
            return None
    # Every row is set on one rank and 0 on the others, so the sum is exact.
    table = engine.sum(table).cpu()
    total = engine.sum(torch.tensor([tokens], dtype=torch.float64)).item()
    return Measured(gaps=table[:, 0], losses=table[:, 1], tokens=int(total))
