"""One optimizer step's gradient: micro-batches through policy and loss, and one reduction for all that is logged."""

from dataclasses import dataclass

import torch

from dpo_operator.api.training import Budget
from dpo_trainer.batches.sampler import Indices
from dpo_trainer.engine.engine import Engine
from dpo_trainer.losses.by_token import token_means, token_sums
from dpo_trainer.losses.metrics import Totals, means, sums
from dpo_trainer.losses.objective import Objective
from dpo_trainer.losses.spread import spread_means, spread_sums
from dpo_trainer.runtime.stop import StopRequest
from dpo_trainer.training.balancing import start_balance
from dpo_trainer.training.evaluate import reference_point
from dpo_trainer.training.examples import Examples
from dpo_trainer.training.pace import Pace
from dpo_trainer.training.passes import logps_of, micro_batches_of, plan_rounds


@dataclass(frozen=True)
class StepSums:
    """Sums and metrics of one step over all ranks.

    metrics: means, TRL's keys. first_loss: loss that these pairs have while the policy is the reference; None when not asked for.
    tokens, truncated: of the step's pairs. nonfinite_pairs: those whose loss is not finite. stop: some rank was asked to stop.
    """

    metrics: dict[str, float]
    first_loss: float | None
    tokens: int
    truncated: int
    nonfinite_pairs: int
    stop: bool


def forward_backward(
    engine: Engine,
    objective: Objective,
    examples: Examples,
    pairs: Indices,
    stop: StopRequest,
    *,
    budget: Budget,
    kl_budget: Budget,
    is_first: bool,
    router_aux_loss: float | None = None,
    diagnosed: bool = False,
    pace: Pace | None = None,
) -> StepSums:
    """Gradient of one step's mean loss. Collective.

    budget: of a forward and backward pass. kl_budget: of a pass without gradients. is_first: compute first_loss.
    router_aux_loss: weight of the routers' auxiliary loss, which is added to the gradient and not to the metric loss.
    diagnosed: also compute what diagnosis looks at, see losses/spread.py and losses/by_token.py; it changes no gradient.
    pace: compares the ranks' speed on the way.
    """
    kl = reference_point(engine, examples, budget=kl_budget, indices=pairs) if objective.needs_kl else None
    units = objective.units(torch.from_numpy(examples.data.lengths[pairs, 1:]))
    totals = Totals()
    tokens = truncated = 0
    planned = plan_rounds(engine, examples.data, pairs, budget)
    balance = start_balance(engine, examples.data, pairs, router_aux_loss, planned, kl_budget)
    batches = micro_batches_of(engine, examples.data, planned, score_prompts=objective.needs_prompt)
    for number, batch in enumerate(batches, start=1):
        scored = engine.score(batch, routing=balance is not None)
        logps = logps_of(batch, scored, examples.reference)
        counts = (batch.weight > 0).to(scored.answers.device)
        loss = objective.loss(logps, kl)
        minimized = (loss * counts).sum() / units
        found = sums(objective, logps, loss.detach(), kl, counts)
        if balance is not None:
            part = balance.part(engine, scored)
            minimized = minimized + balance.coefficient * part
            found["aux_loss"] = part.detach()
        engine.backward(minimized, last=number == len(planned))
        if objective.predicts_tokens:
            found |= token_sums(scored.tokens.segment, scored.tokens.entropy, scored.tokens.top1, counts)
        if diagnosed:
            source = examples.source(batch.pairs, counts.device)
            found |= spread_sums(objective, logps, loss.detach(), counts, source, tuple(examples.sources))
        if is_first and objective.needs_reference:
            with torch.no_grad():
                found["first_loss"] = (objective.first_loss(logps) * counts).sum()
        tokens, truncated = tokens + batch.tokens, truncated + batch.truncated
        totals.add(found, engine.world.device)
    speed = pace.share() if pace else {}
    total = totals.over_ranks(engine.sum, stop=stop.is_set(), tokens=tokens, truncated=truncated, **speed)
    if pace:
        pace.update(total)
    metrics = means(total, None if kl is None else kl.item())
    if objective.predicts_tokens:
        metrics |= token_means(total, by_side=diagnosed)
    if diagnosed:
        metrics |= spread_means(total, tuple(examples.sources))
    if balance is not None:
        metrics["aux_loss"] = total["aux_loss"]
    return StepSums(
        metrics=metrics,
        first_loss=total["first_loss"] / units if "first_loss" in total else None,
        tokens=int(total["tokens"]),
        truncated=int(total["truncated"]),
        nonfinite_pairs=int(total["broken"]),
        stop=total["stop"] > 0,
    )
