"""Forward passes over a dataset, without gradients."""

from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dpo_operator.api.training import Budget
from dpo_trainer.batches.batch import MicroBatch, collate
from dpo_trainer.batches.packing import Round, rounds
from dpo_trainer.batches.sampler import Indices
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.engine.engine import Engine, Scored
from dpo_trainer.losses.objective import Logps


class Look(Protocol):
    """Takes a look at every token of some batches."""

    def rounds(self, planned: list[Round]) -> set[int]:
        """Which rounds to look at, the same on every rank."""
        ...

    def add(self, batch: MicroBatch, scored: Scored) -> None:
        """A batch of this rank of such a round. scored: with every token."""
        ...


def plan_rounds(engine: Engine, dataset: PairDataset, indices: Indices, budget: Budget) -> list[Round]:
    """Rounds that cover these pairs."""
    return rounds(
        indices,
        dataset.lengths,
        layout=engine.module.layout,
        budget=budget,
        world_size=engine.world.world_size,
    )


def micro_batches_of(
    engine: Engine, dataset: PairDataset, planned: list[Round], *, score_prompts: bool = False
) -> Iterator[MicroBatch]:
    """This rank's micro-batches of some rounds, on its device; the next one is made while one is used.

    A rank that has none left gets the shortest pair with weight 0, so that it takes part in the collectives.
    """
    rank, layout = engine.world.rank, engine.module.layout

    def make(number: int) -> MicroBatch:
        group = planned[number][rank].tolist()
        chosen, weight = (group, 1.0) if group else ([int(dataset.lengths.sum(axis=1).argmin())], 0.0)
        batch = collate(dataset, chosen, weight=weight, score_prompts=score_prompts, layout=layout)
        return batch.to(engine.world.device)

    device = engine.world.device
    # CUDA's current device is per thread; without this, memory would be pinned for the first GPU.
    own = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    with ThreadPoolExecutor(1, thread_name_prefix="collate", initializer=own) as pool:
        coming = pool.submit(make, 0)
        for number in range(1, len(planned) + 1):
            batch = coming.result()
            if number < len(planned):
                coming = pool.submit(make, number)
            yield batch


def forward_all(
    engine: Engine,
    dataset: PairDataset,
    planned: list[Round],
    *,
    score_prompts: bool = False,
    every_token: Container[int] = (),
) -> Iterator[tuple[MicroBatch, Scored]]:
    """This rank's share of the pairs with their log-probs. Collective: every rank must exhaust the iterator, or stop
    at the same item. planned: see plan_rounds. every_token: rounds in which Scored.tokens has all of them.
    """
    engine.train(False)
    try:
        batches = micro_batches_of(engine, dataset, planned, score_prompts=score_prompts)
        for number, batch in enumerate(batches):
            with torch.no_grad():
                yield batch, engine.score(batch, every_token=number in every_token)
    finally:
        engine.train(True)


def logps_table(
    engine: Engine,
    dataset: PairDataset,
    *,
    budget: Budget,
    indices: Indices | None = None,
    after_each: Callable[[int], None] = lambda _: None,
    look: Look | None = None,
) -> Tensor:
    """Log-probs of every pair under the current weights: float64 [pairs, 2, 2], nats, on the CPU of every rank, see
    Scored.answers. Collective.

    budget: of one forward pass. indices: only these pairs; the other rows are 0. after_each: called with the pairs that all ranks have finished;
        it may raise, on every rank at the same call. look: sees every token of the batches that it wants; the log-probs stay the same.
    """
    table = torch.zeros(len(dataset), 2, 2, dtype=torch.float64)
    planned = plan_rounds(engine, dataset, all_pairs(dataset) if indices is None else indices, budget)
    looked_at = look.rounds(planned) if look else set()
    done = 0
    for number, (batch, scored) in enumerate(forward_all(engine, dataset, planned, every_token=looked_at)):
        if look and number in looked_at:
            look.add(batch, scored)
        real = (batch.weight > 0).cpu()
        table[batch.pairs[real]] = scored.answers.cpu()[real]
        done += sum(len(group) for group in planned[number])
        after_each(done)
    # Every row is set on one rank and 0 on the others, so the sum is exact.
    return engine.sum(table).cpu()


def logps_of(batch: MicroBatch, scored: Scored, reference: Tensor | None) -> Logps:
    """Log-probs as the loss takes them. reference: the whole table of the batch's dataset, or None for reference-free methods."""
    device = scored.answers.device
    before = None if reference is None else reference[batch.pairs]
    if before is not None and device.type == "cuda":
        before = before.pin_memory().to(device, non_blocking=True)
    return Logps(
        policy=scored.answers[..., 0],
        policy_head=scored.answers[..., 1],
        tokens=batch.answer_tokens.to(device),
        reference=None if before is None else before[..., 0],
        reference_head=None if before is None else before[..., 1],
        prompt=scored.prompts,
        prompt_tokens=batch.prompt_tokens.to(device),
        score_gaps=batch.score_gaps.to(device),
    )


def all_pairs(dataset: PairDataset) -> Indices:
    return np.arange(len(dataset), dtype=np.int64)
