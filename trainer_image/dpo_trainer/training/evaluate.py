"""Forward passes over data, without gradients: evaluation, and the loop that reference log-probs share with it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dpo_operator.api.training import Budget
from dpo_trainer.batches.batch import MicroBatch, collate
from dpo_trainer.batches.packing import Round, rounds
from dpo_trainer.batches.sampler import IntArray
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.engine.engine import Engine, Scored
from dpo_trainer.losses.by_length import bucket_means, bucket_sums
from dpo_trainer.losses.formulas import kto_kl
from dpo_trainer.losses.metrics import Totals, means, sums
from dpo_trainer.losses.objective import Logps, Objective
from dpo_trainer.training.examples import Examples


def plan_rounds(engine: Engine, dataset: PairDataset, indices: IntArray, budget: Budget) -> list[Round]:
    """What all ranks run, one after another, to see these pairs."""
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
    # The current GPU is a thread's own; memory would be pinned by the first one otherwise.
    own = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    with ThreadPoolExecutor(1, thread_name_prefix="collate", initializer=own) as pool:
        coming = pool.submit(make, 0)
        for number in range(1, len(planned) + 1):
            batch = coming.result()
            if number < len(planned):
                coming = pool.submit(make, number)
            yield batch


def forward_all(
    engine: Engine, dataset: PairDataset, planned: list[Round], *, score_prompts: bool = False
) -> Iterator[tuple[MicroBatch, Scored]]:
    """This rank's share of the pairs with their log-probs. Collective: every rank must take it to its end, or leave
    it at the same place. planned: see plan_rounds.
    """
    engine.train(False)
    try:
        for batch in micro_batches_of(engine, dataset, planned, score_prompts=score_prompts):
            with torch.no_grad():
                yield batch, engine.score(batch)
    finally:
        engine.train(True)


def logps_table(
    engine: Engine,
    dataset: PairDataset,
    *,
    budget: Budget,
    indices: IntArray | None = None,
    after_each: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Log-probs of every pair under the current weights: float64 [pairs, 2, 2], nats, on the CPU of every rank, see
    Scored.answers. Collective.

    budget: of one forward pass. indices: only these pairs; the other rows are 0. after_each: called with the pairs that all ranks have finished;
        it may raise, on every rank at the same call.
    """
    table = torch.zeros(len(dataset), 2, 2, dtype=torch.float64)
    planned = plan_rounds(engine, dataset, _all(dataset) if indices is None else indices, budget)
    done = 0
    for number, (batch, scored) in enumerate(forward_all(engine, dataset, planned)):
        real = (batch.weight > 0).cpu()
        table[batch.pairs[real]] = scored.answers.cpu()[real]
        done += sum(len(group) for group in planned[number])
        after_each(done)
    # Every row is set on one rank and 0 on the others, so the sum is exact.
    return engine.sum(table).cpu()


def logps_of(batch: MicroBatch, scored: Scored, reference: Tensor | None) -> Logps:
    """What the loss sees. reference: the whole table of the batch's dataset, or None for reference-free methods."""
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
    )


def reference_point(
    engine: Engine,
    examples: Examples,
    *,
    budget: Budget,
    indices: IntArray | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """KTO's estimate of the KL divergence, from the answers to other prompts: float64 scalar, nats. Collective.

    It is one number for all ranks and micro-batches, so neither their number nor their size changes the loss.
    should_stop: see evaluate; None is returned then.
    """
    assert examples.mismatched is not None
    assert examples.mismatched_reference is not None
    totals = torch.zeros(2, dtype=torch.float64, device=engine.world.device)
    chosen = _all(examples.mismatched) if indices is None else indices
    planned = plan_rounds(engine, examples.mismatched, chosen, budget)
    for batch, scored in forward_all(engine, examples.mismatched, planned):
        logps = logps_of(batch, scored, examples.mismatched_reference)
        counted = logps.present & (batch.weight > 0).to(totals.device)[:, None]
        ratios = torch.where(counted, logps.log_ratios, torch.zeros_like(logps.policy))
        totals += torch.stack([ratios.sum(), counted.sum().double()])
        if should_stop():
            return None
    return kto_kl(*engine.sum(totals))


def evaluate(
    engine: Engine,
    examples: Examples,
    objective: Objective,
    *,
    budget: Budget,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Loss, rewards and what else figures.py and buckets.py name, means over a dataset. Collective.

    budget: of one forward pass.
    should_stop: asked after each pass, the same answer on every rank; the evaluation is then given up, and None returned.
    """
    kl: Tensor | None = None
    if objective.needs_kl:
        kl = reference_point(engine, examples, budget=budget, should_stop=should_stop)
        if kl is None:
            return None
    totals = Totals()
    planned = plan_rounds(engine, examples.data, _all(examples.data), budget)
    for batch, scored in forward_all(engine, examples.data, planned, score_prompts=objective.needs_prompt):
        logps = logps_of(batch, scored, examples.reference)
        loss, counts = objective.loss(logps, kl), (batch.weight > 0).to(scored.answers.device)
        found = sums(objective, logps, loss, kl, counts) | bucket_sums(logps, objective.rewards(logps), counts)
        totals.add(found, engine.world.device)
        if should_stop():
            return None
    whole = totals.over_ranks(engine.sum)
    return means(whole, None if kl is None else kl.item()) | bucket_means(whole)


def _all(dataset: PairDataset) -> IntArray:
    return np.arange(len(dataset), dtype=np.int64)
