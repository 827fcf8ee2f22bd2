"""Answers of the policy to some prompts: the most likely token again and again, and draws at temperature 1, in one pass.

Nothing else decides (no repetition penalty, whatever the model's generation_config.json says), and no random number of torch's
generators is used: draws have numbers of their own, so that training continues as if there had been none.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpo_trainer.engine.engine import Engine
from dpo_trainer.model.load import causal_lm_of

Ids = list[int]


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
    from transformers import GenerationConfig

    longest, copies = max(map(len, prompts)), 1 if drawn_by is None else 2
    ids = torch.zeros(copies * len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate([*prompts] * copies):
        # Padded on the left: each answer begins where its prompt ends.
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    # What is drawn is made the most likely token, so that greedy decoding takes it.
    greedy = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(end) or None,
        pad_token_id=0,
    )
    model, device = causal_lm_of(engine.module.model), engine.world.device
    draw = None if drawn_by is None else _Draw(drawn_by.to(device), first=longest)
    with _settings_replaced(model, greedy):
        # synced_gpus: all ranks continue until the last one's answer is finished, because each token gathers the weights.
        whole = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=greedy,
            logits_processor=[draw] if draw else None,
            synced_gpus=engine.world.world_size > 1 and not alone,
        )
    answers = [_until_end(row, end) for row in whole[:, longest:].tolist()]
    if draw is None:
        return answers, []
    logps = torch.stack(draw.logps, dim=1).tolist()
    drawn = [
        Drawn(answer, sum(of_tokens[: len(answer)]))
        for answer, of_tokens in zip(answers[len(prompts) :], logps, strict=True)
    ]
    return answers[: len(prompts)], drawn


class _Draw:
    """A logits processor that draws the tokens of the last rows from their distributions, and keeps their log-probs."""

    def __init__(self, by: Tensor, *, first: int) -> None:
        """by: [rows, tokens]. first: length of what the first drawn token follows."""
        self._by, self._first = by, first
        self.logps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = slice(len(scores) - len(self._by), None)
        place = min(input_ids.shape[1] - self._first, self._by.shape[1] - 1)
        logps = scores[rows].double().log_softmax(dim=-1)
        sums = logps.exp().cumsum(dim=-1)
        chosen = torch.searchsorted(sums, self._by[:, place, None] * sums[:, -1:], right=True)
        chosen = chosen.clamp(max=scores.shape[-1] - 1)
        self.logps.append(logps.gather(1, chosen).squeeze(1))
        scores = scores.clone()
        scores[rows] = torch.full_like(scores[rows], -torch.inf).scatter(1, chosen, 0.0)
        return scores


@contextmanager
def _settings_replaced(model: Any, settings: Any) -> Iterator[None]:
    """Keep the model's own generation settings from filling in what ours leave open."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _until_end(answer: Ids, end: tuple[int, ...]) -> Ids:
    """What follows the first id that ends the answer is padding."""
    for number, token in enumerate(answer, start=1):
        if token in end:
            return answer[:number]
    return answer
