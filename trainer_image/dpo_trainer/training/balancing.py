"""The auxiliary loss of routers over one optimizer step: the same for any number of ranks and micro-batches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_operator.api.training import Budget
from dpo_trainer.batches.packing import Round
from dpo_trainer.batches.sampler import Indices
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.engine.engine import Engine, Scored
from dpo_trainer.losses.balance import balance_loss
from dpo_trainer.model.policy import Policy
from dpo_trainer.training.passes import micro_batches_of, plan_rounds


@dataclass
class Balance:
    """The loss of one step. coefficient: its weight. tokens: what each expert gets of the step, [experts]; None until it is known."""

    coefficient: float
    tokens: Tensor | None = None

    def part(self, engine: Engine, scored: Scored) -> Tensor:
        """A micro-batch's part of the auxiliary loss, scalar with gradient, without the coefficient. Collective."""
        assert scored.routing is not None
        assert isinstance(engine.module, Policy)
        assert engine.module.routers is not None
        probabilities, tokens = scored.routing
        if self.tokens is None:  # the step's only micro-batch on each rank
            self.tokens = engine.sum(tokens.detach())
        return balance_loss(probabilities, self.tokens, engine.module.routers.top_k)


def start_balance(
    engine: Engine, data: PairDataset, pairs: Indices, coefficient: float | None, planned: list[Round], budget: Budget
) -> Balance | None:
    """Of a step with these pairs; None without the loss. Collective.

    How many tokens each expert gets of the whole step must be known before the first backward pass. With several micro-batches on a rank that takes
    a pass of its own without gradients. planned: the step's rounds. budget: of that pass.
    """
    if coefficient is None:
        return None
    if len(planned) == 1:
        return Balance(coefficient)
    engine.train(False)
    found: list[Tensor] = []
    with torch.no_grad():
        for batch in micro_batches_of(engine, data, plan_rounds(engine, data, pairs, budget)):
            routing = engine.score(batch, routing=True).routing
            assert routing is not None
            found.append(routing[1])
    engine.train(True)
    return Balance(coefficient, engine.sum(torch.stack(found).sum(dim=0)))
