"""Tensors of one forward pass over some preference pairs.

The model and the loss see a MicroBatch and nothing of how it was laid out. Packing or sharing a prompt between its
two answers would be another `collate`: it fills the same fields, with restarting positions and a block mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dpo_trainer.dataset import PairDataset, TokenPair


@dataclass(frozen=True)
class MicroBatch:
    """Pairs, laid out as rows of tokens.

    input_ids: int64 [rows, length].
    position_ids: int64 [rows, length], counted from 0 in each sequence.
    attention_mask: None where the causal mask says it all. That holds for rows padded on the right: an answer token
        never looks ahead to the padding.
    answer_positions: int64 [answer_tokens], flat indices into rows*length of the tokens that predict an answer token.
    answer_targets: int64 [answer_tokens], the answer token that each of them predicts.
    answer_segment: int64 [answer_tokens], the answer it belongs to: 2*pair is chosen, 2*pair+1 rejected.
    pairs: int64 [pairs], where the pairs are in the dataset.
    weight: float32 [pairs], 1, or 0 for a pair that only keeps this rank in step with the others.
    tokens: tokens that are not padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    answer_positions: Tensor
    answer_targets: Tensor
    answer_segment: Tensor
    pairs: Tensor
    weight: Tensor
    tokens: int

    def to(self, device: torch.device) -> "MicroBatch":
        """The same batch on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def collate(dataset: PairDataset, indices: Sequence[int], *, weight: float = 1.0) -> MicroBatch:
    """Lay out pairs as rows: chosen and rejected of the first pair, of the second, and so on; padded on the right.

    indices: positions in the dataset, at least one.
    weight: 1 for pairs that count, 0 for those that do not.
    The padding is token 0, a real token in most vocabularies. It is never predicted and, with causal attention, never
    seen by a token that is, so the tokenizer needs no padding token.
    """
    sequences: list[tuple[TokenPair, np.ndarray]] = []
    for index in indices:
        pair = dataset[index]
        sequences += [(pair, pair.chosen), (pair, pair.rejected)]
    length = max(len(pair.prompt) + len(answer) for pair, answer in sequences)
    ids = np.zeros((len(sequences), length), dtype=np.int64)
    positions, targets, segments = [], [], []
    for row, (pair, answer) in enumerate(sequences):
        start, end = len(pair.prompt), len(pair.prompt) + len(answer)
        if start == 0:
            raise ValueError(f"pair {indices[row // 2]}: expected a prompt of at least one token, found none")
        ids[row, :start] = pair.prompt
        ids[row, start:end] = answer
        positions.append(np.arange(start - 1, end - 1, dtype=np.int64) + row * length)
        targets.append(answer.astype(np.int64))
        segments.append(np.full(len(answer), row, dtype=np.int64))
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.arange(length).expand(len(sequences), length),
        attention_mask=None,
        answer_positions=torch.from_numpy(np.concatenate(positions)),
        answer_targets=torch.from_numpy(np.concatenate(targets)),
        answer_segment=torch.from_numpy(np.concatenate(segments)),
        pairs=torch.as_tensor(list(indices), dtype=torch.int64),
        weight=torch.full((len(indices),), weight, dtype=torch.float32),
        tokens=sum(len(pair.prompt) + len(answer) for pair, answer in sequences) if weight else 0,
    )
