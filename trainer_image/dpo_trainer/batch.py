"""Tensors of one forward pass over some preference pairs.

The model and the loss see a MicroBatch and nothing of how it was laid out. Packing or sharing a prompt between its
two answers would be another `collate`: it fills the same fields, with restarting positions and a block mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dpo_trainer.dataset import PairDataset


@dataclass(frozen=True)
class MicroBatch:
    """Pairs, laid out as rows of tokens.

    input_ids: int64 [rows, length].
    position_ids: int64 [rows, length], counted from 0 in each sequence.
    attention_mask: None where the causal mask says it all. That holds for rows padded on the right: an answer token
        never looks ahead to the padding.
    scored_positions: int64 [scored], flat indices into rows*length of the tokens that predict a scored token.
    scored_targets: int64 [scored], the token that each of them predicts.
    scored_segment: int64 [scored], what it belongs to: 2*pair is the chosen answer, 2*pair+1 the rejected one, and
        2*pairs+pair the prompt, where prompts are scored.
    scored_head: bool [scored], whether the token is among the first n of its answer, n being the shorter answer's length.
    segments: how many of those there are: 2*pairs, or 3*pairs with prompts.
    answer_tokens: int64 [pairs, 2], lengths of the answers, 0 where an unpaired example has none.
    prompt_tokens: int64 [pairs], tokens of the prompts that can be scored: all but the first.
    pairs: int64 [pairs], where the pairs are in the dataset.
    weight: float32 [pairs], 1, or 0 for a pair that only keeps this rank in step with the others.
    tokens, truncated: tokens that are not padding, and pairs that were cut, among those that count.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    scored_positions: Tensor
    scored_targets: Tensor
    scored_segment: Tensor
    scored_head: Tensor
    segments: int
    answer_tokens: Tensor
    prompt_tokens: Tensor
    pairs: Tensor
    weight: Tensor
    tokens: int
    truncated: int

    def to(self, device: torch.device) -> "MicroBatch":
        """The same batch on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def collate(
    dataset: PairDataset, indices: Sequence[int], *, weight: float = 1.0, score_prompts: bool = False
) -> MicroBatch:
    """Lay out pairs as rows: chosen and rejected of the first pair, of the second, and so on; padded on the right.

    indices: positions in the dataset, at least one.
    weight: 1 for pairs that count, 0 for those that do not.
    score_prompts: score the prompts' tokens too, once for each pair, in its chosen answer's row; an unpaired example that
        is undesirable has no such row.
    The padding is token 0, a real token in most vocabularies. It is never predicted and, with causal attention, never
    seen by a token that is, so the tokenizer needs no padding token.
    """
    pairs = [dataset[index] for index in indices]
    sequences = [
        (number, side, pair.prompt, answer)
        for number, pair in enumerate(pairs)
        for side, answer in enumerate((pair.chosen, pair.rejected))
        if len(answer)
    ]
    length = max(len(prompt) + len(answer) for _, _, prompt, answer in sequences)
    lengths = np.array([[len(pair.chosen), len(pair.rejected)] for pair in pairs], dtype=np.int64)
    # An answer without a counterpart is its own head.
    shorter = np.where(lengths.min(axis=1) > 0, lengths.min(axis=1), lengths.max(axis=1))
    ids = np.zeros((len(sequences), length), dtype=np.int64)
    positions, targets, segments, heads = [], [], [], []

    def score(row: int, start: int, tokens: np.ndarray, segment: int, head: int) -> None:
        """Have `tokens`, which begin at `start` in a row, predicted from one position earlier."""
        positions.append(np.arange(start - 1, start - 1 + len(tokens), dtype=np.int64) + row * length)
        targets.append(tokens.astype(np.int64))
        segments.append(np.full(len(tokens), segment, dtype=np.int64))
        heads.append(np.arange(len(tokens)) < head)

    for row, (number, side, prompt, answer) in enumerate(sequences):
        start = len(prompt)
        if start == 0:
            raise ValueError(f"pair {indices[number]}: expected a prompt of at least one token, found none")
        ids[row, :start] = prompt
        ids[row, start : start + len(answer)] = answer
        score(row, start, answer, 2 * number + side, int(shorter[number]))
        if score_prompts and side == 0:
            score(row, 1, prompt[1:], 2 * len(pairs) + number, start)
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.arange(length).expand(len(sequences), length),
        attention_mask=None,
        scored_positions=torch.from_numpy(np.concatenate(positions)),
        scored_targets=torch.from_numpy(np.concatenate(targets)),
        scored_segment=torch.from_numpy(np.concatenate(segments)),
        scored_head=torch.from_numpy(np.concatenate(heads)),
        segments=(3 if score_prompts else 2) * len(pairs),
        answer_tokens=torch.from_numpy(lengths),
        prompt_tokens=torch.tensor([len(pair.prompt) - 1 for pair in pairs]),
        pairs=torch.as_tensor(list(indices), dtype=torch.int64),
        weight=torch.full((len(indices),), weight, dtype=torch.float32),
        tokens=sum(len(prompt) + len(answer) for _, _, prompt, answer in sequences) if weight else 0,
        truncated=sum(pair.truncated for pair in pairs) if weight else 0,
    )
