"""Tensors of one forward pass over some preference pairs.

The loss sees a MicroBatch and nothing of how it was laid out: as rows, or packed with one copy of each prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dpo_trainer.batches.sequences import Sequences, Span, copied, sequences_of
from dpo_trainer.data.dataset import PairDataset, TokenPair

Layout = Literal["shared", "plain", "off"]


@dataclass(frozen=True)
class MicroBatch:
    """Pairs, laid out as rows of tokens.

    input_ids: int64 [rows, length].
    position_ids: int64 [rows, length], counted from 0 in each sequence.
    spans: None where the causal mask suffices. That holds for rows padded on the right: an answer token never looks ahead
        to the padding. Otherwise the pairs of the one row, see model/attention.
    sequences: the same pairs as a variable-length kernel takes them; None without spans.
    scored_positions: int64 [scored], flat indices into rows*length of the tokens that predict a scored token.
    scored_targets: int64 [scored], the token that each of them predicts.
    scored_segment: int64 [scored], what it belongs to: 2*pair is the chosen answer, 2*pair+1 the rejected one, and
        2*pairs+pair the prompt, where prompts are scored.
    scored_head: bool [scored], whether the token is among the first n of its answer, n being the shorter answer's length.
    segments: how many of those there are: 2*pairs, or 3*pairs with prompts.
    copies: float32 [rows*length], how many sequences of a prompt and an answer each token stands in: 2 for a prompt that both answers share, 0 for padding
        and dummy pairs.
    ends: int64 [pairs, 2], flat index of each answer's last token; 0 where an unpaired example has none.
    answer_tokens: int64 [pairs, 2], lengths of the answers, 0 where an unpaired example has none.
    prompt_tokens: int64 [pairs], tokens of the prompts that can be scored: all but the first.
    pairs: int64 [pairs], where the pairs are in the dataset; on the CPU.
    score_gaps: float64 [pairs], score of the chosen answer less that of the rejected one; NaN where the data have none.
    weight: float32 [pairs], 1, or 0 for a dummy pair that keeps this rank in the collectives.
    tokens, truncated: tokens that are not padding, and pairs that were cut, among those that count.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: tuple[Span, ...] | None
    sequences: Sequences | None
    scored_positions: Tensor
    scored_targets: Tensor
    scored_segment: Tensor
    scored_head: Tensor
    segments: int
    copies: Tensor
    ends: Tensor
    answer_tokens: Tensor
    prompt_tokens: Tensor
    pairs: Tensor
    score_gaps: Tensor
    weight: Tensor
    tokens: int
    truncated: int

    def to(self, device: torch.device) -> "MicroBatch":
        """The same batch on a device; on a GPU the copy may still be under way."""
        if self.input_ids.device.type == device.type:
            return self
        moved: dict[str, Any] = {
            name: copied(value, device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "pairs"
        }
        return replace(self, sequences=self.sequences.to(device) if self.sequences else None, **moved)


def collate(
    dataset: PairDataset,
    indices: Sequence[int],
    *,
    weight: float = 1.0,
    score_prompts: bool = False,
    layout: Layout = "off",
) -> MicroBatch:
    """Lay out pairs for one forward pass.

    indices: positions in the dataset, at least one.
    weight: 1 for pairs that count, 0 for those that do not.
    score_prompts: score the prompts' tokens too, once for each pair, as part of its chosen answer's sequence; an unpaired
        example that is undesirable has none.
    layout: off: each answer has a row with a prompt of its own: chosen and rejected of the first pair, of the second, and so
        on, padded on the right with token 0. That is a real token in most vocabularies, but it is never predicted and, with
        causal attention, never seen by a token that is, so the tokenizer needs no padding token.
        shared: one row without padding, in which each pair is its prompt, its chosen and its rejected answer; positions of the
        rejected answer go on from the prompt's. plain: the same with a prompt before each answer. Both need model/attention.
    """
    pairs = [dataset[index] for index in indices]
    for index, pair in zip(indices, pairs, strict=True):
        if len(pair.prompt) == 0:
            raise ValueError(f"pair {index}: expected a prompt of at least one token, found none")
    lengths = np.array([[len(pair.chosen), len(pair.rejected)] for pair in pairs], dtype=np.int64)
    # An answer without a counterpart is its own head.
    shorter = np.where(lengths.min(axis=1) > 0, lengths.min(axis=1), lengths.max(axis=1))
    ids, places, starts, spans = _LAYOUTS[layout](pairs)
    positions, targets, segments, heads = [], [], [], []
    ends = np.zeros_like(lengths)
    copies = np.zeros(ids.size, dtype=np.float32)

    def score(before: np.ndarray, tokens: np.ndarray, segment: int, head: int) -> None:
        """Have tokens predicted from the flat positions `before`."""
        positions.append(before)
        targets.append(tokens.astype(np.int64))
        segments.append(np.full(len(tokens), segment, dtype=np.int64))
        heads.append(np.arange(len(tokens)) < head)

    for number, pair in enumerate(pairs):
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            if len(answer):
                prompt, first = starts[number][side]
                # The prompt's last token predicts the answer's first one, wherever that is.
                before = np.concatenate([[prompt + len(pair.prompt) - 1], np.arange(first, first + len(answer) - 1)])
                score(before, answer, 2 * number + side, int(shorter[number]))
                ends[number, side] = first + len(answer) - 1
                copies[prompt : prompt + len(pair.prompt)] += weight
                copies[first : first + len(answer)] += weight
        if score_prompts and len(pair.chosen):
            prompt = starts[number][0][0]
            score(np.arange(prompt, prompt + len(pair.prompt) - 1), pair.prompt[1:], 2 * len(pairs) + number, 1 << 62)
    real = int((lengths > 0).sum(axis=1) @ [len(pair.prompt) for pair in pairs] + lengths.sum())
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(places),
        spans=spans,
        sequences=sequences_of(spans) if spans else None,
        scored_positions=torch.from_numpy(np.concatenate(positions)),
        scored_targets=torch.from_numpy(np.concatenate(targets)),
        scored_segment=torch.from_numpy(np.concatenate(segments)),
        scored_head=torch.from_numpy(np.concatenate(heads)),
        segments=(3 if score_prompts else 2) * len(pairs),
        copies=torch.from_numpy(copies),
        ends=torch.from_numpy(ends),
        answer_tokens=torch.from_numpy(lengths),
        prompt_tokens=torch.tensor([len(pair.prompt) - 1 for pair in pairs]),
        pairs=torch.as_tensor(list(indices), dtype=torch.int64),
        score_gaps=torch.tensor([pair.score_gap for pair in pairs], dtype=torch.float64),
        weight=torch.full((len(indices),), weight, dtype=torch.float32),
        tokens=real if weight else 0,
        truncated=sum(pair.truncated for pair in pairs) if weight else 0,
    )


# Token ids and positions, int64 [rows, length]; for each pair and side, where its prompt and its answer begin, as flat
# indices; and the spans of a packed row.
_LaidOut = tuple[np.ndarray, np.ndarray, list[list[tuple[int, int]]], tuple[Span, ...] | None]


def _pad(pairs: list[TokenPair]) -> _LaidOut:
    """Each answer in a row of its own, behind its prompt."""
    sequences = [
        (number, side, pair.prompt, answer)
        for number, pair in enumerate(pairs)
        for side, answer in enumerate((pair.chosen, pair.rejected))
        if len(answer)
    ]
    length = max(len(prompt) + len(answer) for _, _, prompt, answer in sequences)
    ids = np.zeros((len(sequences), length), dtype=np.int64)
    starts = [[(0, 0), (0, 0)] for _ in pairs]
    for row, (number, side, prompt, answer) in enumerate(sequences):
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : len(prompt) + len(answer)] = answer
        starts[number][side] = (row * length, row * length + len(prompt))
    return ids, np.broadcast_to(np.arange(length, dtype=np.int64), ids.shape).copy(), starts, None


def _share(pairs: list[TokenPair]) -> _LaidOut:
    """All pairs in one row, each prompt once."""
    ids, places, starts, spans, at = [], [], [], [], 0
    for pair in pairs:
        prompt, chosen, rejected = len(pair.prompt), len(pair.chosen), len(pair.rejected)
        ids += [pair.prompt, pair.chosen, pair.rejected]
        places += [np.arange(prompt + chosen), np.arange(prompt, prompt + rejected)]
        starts.append([(at, at + prompt), (at, at + prompt + chosen)])
        spans.append(Span(at, prompt, chosen, rejected))
        at += prompt + chosen + rejected
    return (
        np.concatenate(ids).astype(np.int64)[None],
        np.concatenate(places).astype(np.int64)[None],
        starts,
        tuple(spans),
    )


def _pack(pairs: list[TokenPair]) -> _LaidOut:
    """All answers in one row, each behind its own prompt."""
    ids, places, spans, at = [], [], [], 0
    starts = [[(0, 0), (0, 0)] for _ in pairs]
    for number, pair in enumerate(pairs):
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            if len(answer):
                ids += [pair.prompt, answer]
                places.append(np.arange(len(pair.prompt) + len(answer)))
                starts[number][side] = (at, at + len(pair.prompt))
                spans.append(Span(at, len(pair.prompt), len(answer), 0))
                at += len(pair.prompt) + len(answer)
    return (
        np.concatenate(ids).astype(np.int64)[None],
        np.concatenate(places).astype(np.int64)[None],
        starts,
        tuple(spans),
    )


_LAYOUTS: dict[Layout, Callable[[list[TokenPair]], _LaidOut]] = {"off": _pad, "plain": _pack, "shared": _share}
