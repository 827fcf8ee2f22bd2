"""What `collate` lays out: every answer token is predicted once, from the token before it, and nothing else is."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_trainer.batch import collate
from dpo_trainer.dataset import PairDataset, TokenPair

pytestmark = pytest.mark.unit

tokens = st.lists(st.integers(min_value=0, max_value=500), min_size=1, max_size=12)
pair_lists = st.lists(st.tuples(tokens, tokens, tokens), min_size=1, max_size=5)


def a_dataset(*pairs: tuple[list[int], list[int], list[int]]) -> PairDataset:
    def array(ids: list[int]) -> np.ndarray:
        return np.array(ids, dtype=np.int32)

    return PairDataset.from_pairs(
        TokenPair(array(prompt), array(chosen), array(rejected), row)
        for row, (prompt, chosen, rejected) in enumerate(pairs)
    )


def test_layout_by_hand():
    batch = collate(a_dataset(([1, 2], [3], [4, 5])), [0])
    assert batch.input_ids.tolist() == [[1, 2, 3, 0], [1, 2, 4, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]] * 2
    # Row 0: token 1 predicts the 3. Row 1: flat 4+1 predicts the 4, 4+2 the 5. No row predicts its prompt.
    assert batch.answer_positions.tolist() == [1, 5, 6]
    assert batch.answer_targets.tolist() == [3, 4, 5]
    assert batch.answer_segment.tolist() == [0, 1, 1]
    assert batch.attention_mask is None
    assert batch.tokens == 7


@given(pair_lists)
def test_each_answer_can_be_read_back(pairs: list[tuple[list[int], list[int], list[int]]]):
    batch = collate(a_dataset(*pairs), range(len(pairs)))
    flat = batch.input_ids.flatten()
    # The target is the token after the position that predicts it.
    assert torch.equal(flat[batch.answer_positions + 1], batch.answer_targets)
    for index, (prompt, chosen, rejected) in enumerate(pairs):
        for segment, answer in ((2 * index, chosen), (2 * index + 1, rejected)):
            mine = batch.answer_segment == segment
            assert batch.answer_targets[mine].tolist() == answer
            first = int(batch.answer_positions[mine][0])
            assert flat[first - len(prompt) + 1 : first + 1].tolist() == prompt


def test_indices_pick_pairs_and_weight_marks_them():
    data = a_dataset(([1], [2], [3]), ([4], [5], [6]), ([7], [8], [9]))
    batch = collate(data, [2, 0], weight=0.0)
    assert batch.pairs.tolist() == [2, 0]
    assert batch.weight.tolist() == [0.0, 0.0]
    assert batch.input_ids[0].tolist() == [7, 8]
    assert batch.tokens == 0


def test_a_pair_without_a_prompt_is_refused():
    # Its first answer token would have nothing to be predicted from.
    with pytest.raises(ValueError, match="pair 0: expected a prompt"):
        collate(a_dataset(([], [1], [2])), [0])


def test_moving_keeps_every_field():
    batch = collate(a_dataset(([1, 2], [3], [4, 5])), [0])
    moved = batch.to(torch.device("meta"))
    assert moved.input_ids.device.type == moved.weight.device.type == "meta"
    assert moved.tokens == batch.tokens
    assert moved.attention_mask is None
