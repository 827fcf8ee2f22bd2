"""Forward passes over data, without gradients: evaluation, and the loop that reference log-probs share with it."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dpo_operator.api.types import Method
from dpo_trainer.batch import MicroBatch, collate
from dpo_trainer.dataset import PairDataset
from dpo_trainer.engine import Engine
from dpo_trainer.losses import PAIR_METRICS, dpo_loss, log_ratios, pair_metrics
from dpo_trainer.sampler import IntArray, micro_batches


def training_batches(
    dataset: PairDataset, indices: IntArray, *, rank: int, world_size: int, size: int
) -> Iterator[tuple[MicroBatch, bool]]:
    """One rank's micro-batches of some pairs, each with whether it is the last; equally many on every rank.

    A rank that has none left gets the shortest pair with weight 0, so that it takes part in the collectives.
    """
    groups = micro_batches(indices, rank=rank, world_size=world_size, size=size)
    for number, group in enumerate(groups, start=1):
        if len(group):
            batch = collate(dataset, group.tolist())
        else:
            batch = collate(dataset, [int(dataset.lengths.sum(axis=1).argmin())], weight=0.0)
        yield batch, number == len(groups)


def forward_all(
    engine: Engine, dataset: PairDataset, *, size: int, indices: IntArray | None = None
) -> Iterator[tuple[MicroBatch, Tensor]]:
    """This rank's share of the pairs with their log-probs. Collective: every rank must take it to its end, or leave
    it at the same place.

    indices: which pairs; all without it. size: pairs of one forward pass.
    Yields batches with [pairs, 2] float64, nats, on the engine's device. Pairs of like length go together, so that
    little is padded.
    """
    chosen = np.arange(len(dataset), dtype=np.int64) if indices is None else indices
    ordered = chosen[np.argsort(dataset.lengths.sum(axis=1)[chosen], kind="stable")]
    world = engine.world
    engine.train(False)
    try:
        for batch, _ in training_batches(dataset, ordered, rank=world.rank, world_size=world.world_size, size=size):
            with torch.no_grad():
                yield batch, engine.logps(batch).view(-1, 2)
    finally:
        engine.train(True)


def logps_table(
    engine: Engine,
    dataset: PairDataset,
    *,
    size: int,
    indices: IntArray | None = None,
    after_each: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Log-probs of every pair under the current weights: float64 [pairs, 2], nats, on the CPU of every rank. Collective.

    indices: only these pairs; the other rows are 0. after_each: called with the pairs that all ranks have finished;
        it may raise, on every rank at the same call.
    """
    table = torch.zeros(len(dataset), 2, dtype=torch.float64)
    total = len(dataset) if indices is None else len(indices)
    done = 0
    for batch, logps in forward_all(engine, dataset, size=size, indices=indices):
        real = batch.weight > 0
        table[batch.pairs[real]] = logps.cpu()[real]
        done = min(total, done + size * engine.world.world_size)
        after_each(done)
    # Every row is set on one rank and 0 on the others, so the sum is exact.
    return engine.sum(table).cpu()


def evaluate(
    engine: Engine,
    dataset: PairDataset,
    reference: Tensor,
    *,
    method: Method,
    size: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Mean loss and rewards over a dataset under the current weights. Collective.

    reference: float64 [pairs, 2], nats. size: pairs of one forward pass.
    should_stop: asked after each pass, the same answer on every rank; the evaluation is then given up.
    Returns the keys of PAIR_METRICS, or None when it was given up.
    """
    totals = torch.zeros(len(PAIR_METRICS) + 1, dtype=torch.float64, device=engine.world.device)
    for batch, policy in forward_all(engine, dataset, size=size):
        before = reference[batch.pairs].to(policy.device)
        chosen, rejected = log_ratios(policy, before)
        loss = dpo_loss(chosen - rejected, beta=method.beta, label_smoothing=method.label_smoothing)
        figures = pair_metrics(loss, policy, before, beta=method.beta)
        real = batch.weight.to(policy.device) > 0
        totals[:-1] += figures[real].sum(dim=0)
        totals[-1] += real.sum()
        if should_stop():
            return None
    *sums, count = engine.sum(totals).tolist()
    return {name: value / count for name, value in zip(PAIR_METRICS, sums, strict=True)}
