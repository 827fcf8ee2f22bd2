"""Evaluation, and the reference point of KTO: passes over data without gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from dpo_operator.api.training import Budget
from dpo_trainer.batches.sampler import Indices
from dpo_trainer.engine.engine import Engine
from dpo_trainer.losses.by_length import bucket_means, bucket_sums
from dpo_trainer.losses.by_token import token_means, token_sums
from dpo_trainer.losses.formulas import kto_kl
from dpo_trainer.losses.metrics import Totals, means, sums
from dpo_trainer.losses.objective import Objective
from dpo_trainer.losses.spread import spread_means, spread_sums, standard_errors
from dpo_trainer.training.examples import Examples
from dpo_trainer.training.passes import all_pairs, forward_all, logps_of, plan_rounds


def reference_point(
    engine: Engine,
    examples: Examples,
    *,
    budget: Budget,
    indices: Indices | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """KTO's estimate of the KL divergence, from the answers to other prompts: float64 scalar, nats. Collective.

    It is one number for all ranks and micro-batches, so neither their number nor their size changes the loss.
    should_stop: see evaluate; None is returned then.
    """
    assert examples.mismatched is not None
    assert examples.mismatched_reference is not None
    totals = torch.zeros(2, dtype=torch.float64, device=engine.world.device)
    chosen = all_pairs(examples.mismatched) if indices is None else indices
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
    diagnosed: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Loss, rewards and all metrics of losses/metrics.py and by_length.py, means over a dataset. Collective.

    budget: of one forward pass. diagnosed: also what diagnosis looks at, see losses/spread.py and losses/by_token.py.
    should_stop: asked after each pass, the same answer on every rank; then the evaluation is aborted and returns None.
    """
    kl: Tensor | None = None
    if objective.needs_kl:
        kl = reference_point(engine, examples, budget=budget, should_stop=should_stop)
        if kl is None:
            return None
    totals = Totals()
    planned = plan_rounds(engine, examples.data, all_pairs(examples.data), budget)
    for batch, scored in forward_all(engine, examples.data, planned, score_prompts=objective.needs_prompt):
        logps = logps_of(batch, scored, examples.reference)
        loss, counts = objective.loss(logps, kl), (batch.weight > 0).to(scored.answers.device)
        found = sums(objective, logps, loss, kl, counts) | bucket_sums(logps, objective.rewards(logps), counts)
        if diagnosed:
            source = examples.source(batch.pairs, counts.device)
            found |= spread_sums(objective, logps, loss, counts, source, tuple(examples.sources))
            if objective.predicts_tokens:
                found |= token_sums(scored.tokens.segment, scored.tokens.entropy, scored.tokens.top1, counts)
        totals.add(found, engine.world.device)
        if should_stop():
            return None
    whole = totals.over_ranks(engine.sum)
    values = means(whole, None if kl is None else kl.item()) | bucket_means(whole)
    if diagnosed:
        values |= standard_errors(whole) | spread_means(whole, tuple(examples.sources))
        if objective.predicts_tokens:
            values |= token_means(whole, by_side=True)
    return values
