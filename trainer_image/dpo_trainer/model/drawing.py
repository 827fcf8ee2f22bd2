"""Sampling tokens with numbers of one's own, so that answers depend on these numbers and the weights alone.

Nothing else decides (no repetition penalty, whatever the model's generation_config.json says), and no random number of torch's
generators is used.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = list[int]
Prompt = Sequence[int] | npt.NDArray[np.int64]


def draw(scores: Tensor, by: Tensor, *, temperature: float = 1.0, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draw a token for each row. scores: logits [rows, vocabulary]. by: float64 [rows], from 0 up to 1.

    top_p: only from the most likely tokens that have this probability together. Returns the tokens, int64 [rows], and their log-probs at
    temperature 1 among all tokens, float64 [rows], nats.
    """
    logps = scores.double().log_softmax(dim=-1)
    shares = logps.exp() if temperature == 1.0 else (logps / temperature).softmax(dim=-1)
    if top_p < 1.0:
        sorted_shares, order = shares.sort(dim=-1, descending=True, stable=True)
        beyond = sorted_shares.cumsum(dim=-1) - sorted_shares >= top_p
        shares = shares.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), 0.0)
    sums = shares.cumsum(dim=-1)
    chosen = torch.searchsorted(sums, by[:, None] * sums[:, -1:], right=True).clamp(max=scores.shape[-1] - 1)
    return chosen.squeeze(1), logps.gather(1, chosen).squeeze(1)


class Draw:
    """A logits processor that draws the tokens of the last rows from their distributions, and keeps their log-probs."""

    def __init__(
        self,
        by: Tensor,
        *,
        first: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        after_each: Callable[[], None] = lambda: None,
    ) -> None:
        """by: [rows, tokens], from 0 up to 1. first: length of what the first drawn token follows. after_each: called for each token."""
        self._by, self._first, self._temperature, self._top_p = by, first, temperature, top_p
        self._after_each = after_each
        self.logps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = slice(len(scores) - len(self._by), None)
        place = min(input_ids.shape[1] - self._first, self._by.shape[1] - 1)
        chosen, logps = draw(scores[rows], self._by[:, place], temperature=self._temperature, top_p=self._top_p)
        self.logps.append(logps)
        # What is drawn is made the most likely token, so that greedy decoding takes it.
        scores = scores.clone()
        scores[rows] = torch.full_like(scores[rows], -torch.inf).scatter(1, chosen[:, None], 0.0)
        self._after_each()
        return scores


def padded(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of prompts, int64 [prompts, longest]. Padded on the left: each answer begins where its prompt ends."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.int64)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def decode(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    tokens: int,
    end: tuple[int, ...],
    device: torch.device,
    processor: Draw | None,
    synced: bool = False,
) -> list[Ids]:
    """The most likely token again and again, or what the processor makes of it: ids of each answer, with the id that ended it.

    model: of transformers, in evaluation mode. tokens: the most of an answer. end: ids that end one. synced: all ranks continue until the
        last one's answer is finished, because each token gathers the weights; then collective.
    """
    from transformers import GenerationConfig

    ids, mask = padded(prompts)
    greedy = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(end) or None,
        pad_token_id=0,
    )
    with _settings_replaced(model, greedy):
        whole = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=greedy,
            logits_processor=[processor] if processor else None,
            synced_gpus=synced,
        )
    return [_until_end(row, end) for row in whole[:, ids.shape[1] :].tolist()]


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
