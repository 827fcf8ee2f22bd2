"""Answers of the policy to some prompts: the most likely token again and again, and draws at temperature 1, in one pass.

Draws have numbers of their own (model/drawing.py), so that training continues as if there had been none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpo_trainer.engine.engine import Engine
from dpo_trainer.model.drawing import Draw, Ids, decode
from dpo_trainer.model.load import causal_lm_of


@dataclass(frozen=True)
class Drawn:
    """An answer at temperature 1. logp: its log-prob under the policy that wrote it, nats."""

    ids: Ids
    logp: float


def numbers(seed: int, step: int, prompts: Sequence[int], tokens: int) -> Tensor:
    """Numbers from 0 up to 1 that draw the tokens of some prompts' answers: float64 [prompts, tokens].

    They depend on the arguments alone, so any number of ranks draws the same answers. Raw output of the Philox generator, see
    batches.sampler.epoch_order.
    """
    rows = [
        np.random.Philox(key=np.array([seed, (step << 16) + prompt], dtype=np.uint64)).random_raw(tokens)
        for prompt in prompts
    ]
    return torch.from_numpy((np.stack(rows) >> np.uint64(11)) * 2.0**-53)


def generate(
    engine: Engine,
    prompts: Sequence[Ids],
    *,
    tokens: int,
    end: tuple[int, ...],
    drawn_by: Tensor | None,
    alone: bool = False,
) -> tuple[list[Ids], list[Drawn]]:
    """Greedy answers to all prompts, and draws: token ids of each answer, with the id that ended it. Collective unless alone.

    prompts: token ids, at least one prompt on every rank; each rank may have its own, and other numbers of them. tokens: the most of an
        answer. end: ids that end one. drawn_by: see numbers; None for no draws. alone: this rank has all weights, see Engine.whole_weights.
    The engine must be in evaluation mode; the model is left as it was.
    """
    copies = 1 if drawn_by is None else 2
    model, device = causal_lm_of(engine.module.model), engine.world.device
    processor = None if drawn_by is None else Draw(drawn_by.to(device), first=max(map(len, prompts)))
    synced = engine.world.world_size > 1 and not alone
    answers = decode(
        model, [*prompts] * copies, tokens=tokens, end=end, device=device, processor=processor, synced=synced
    )
    if processor is None:
        return answers, []
    logps = torch.stack(processor.logps, dim=1).tolist()
    drawn = [
        Drawn(answer, sum(of_tokens[: len(answer)]))
        for answer, of_tokens in zip(answers[len(prompts) :], logps, strict=True)
    ]
    return answers[: len(prompts)], drawn
