"""What `collate` lays out: every answer token is predicted once, from the token before it, and nothing else is."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_trainer.batches.batch import MicroBatch, collate
from dpo_trainer.data.dataset import PairDataset, TokenPair

pytestmark = pytest.mark.unit

Ids = list[int]
Pair = tuple[Ids, Ids, Ids]

tokens = st.lists(st.integers(min_value=0, max_value=500), min_size=1, max_size=12)
pairs_ = st.tuples(tokens, tokens, tokens)
unpaired = st.one_of(st.tuples(tokens, tokens, st.just([])), st.tuples(tokens, st.just([]), tokens))
pair_lists = st.lists(st.one_of(pairs_, unpaired), min_size=1, max_size=5)


def a_dataset(*pairs: Pair, truncated: bool = False) -> PairDataset:
    def array(ids: Ids) -> np.ndarray:
        return np.array(ids, dtype=np.int32)

    return PairDataset.from_pairs(
        TokenPair(array(prompt), array(chosen), array(rejected), row, truncated)
        for row, (prompt, chosen, rejected) in enumerate(pairs)
    )


def predicted(batch: MicroBatch, segment: int) -> tuple[Ids, Ids]:
    """Tokens of a segment that are scored, and the tokens of its row up to the first of them."""
    mine = batch.scored_segment == segment
    if not mine.any():
        return [], []
    row, length = divmod(int(batch.scored_positions[mine][0]), batch.input_ids.shape[1])
    return batch.scored_targets[mine].tolist(), batch.input_ids[row, : length + 1].tolist()


def test_layout_by_hand():
    batch = collate(a_dataset(([1, 2], [3], [4, 5])), [0])
    assert batch.input_ids.tolist() == [[1, 2, 3, 0], [1, 2, 4, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]] * 2
    # Row 0: token 1 predicts the 3. Row 1: flat 4+1 predicts the 4, 4+2 the 5. No row predicts its prompt.
    assert batch.scored_positions.tolist() == [1, 5, 6]
    assert batch.scored_targets.tolist() == [3, 4, 5]
    assert batch.scored_segment.tolist() == [0, 1, 1]
    # The shorter answer has one token.
    assert batch.scored_head.tolist() == [True, True, False]
    assert batch.segments == 2
    assert batch.answer_tokens.tolist() == [[1, 2]]
    assert batch.spans is None
    assert batch.tokens == 7


def test_a_shared_prompt_is_there_once_and_predicts_both_answers():
    batch = collate(a_dataset(([1, 2], [3, 6], [4, 5, 7]), ([8], [], [9])), [0, 1], layout="shared")
    assert batch.input_ids.tolist() == [[1, 2, 3, 6, 4, 5, 7, 8, 9]]
    # The rejected answer's positions go on from the prompt's; the second pair starts anew.
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4, 0, 1]]
    assert batch.spans == ((0, 2, 2, 3), (7, 1, 0, 1))
    # The 2 predicts the 3 and the 4; the 8 predicts the 9.
    assert batch.scored_positions.tolist() == [1, 2, 1, 4, 5, 7]
    assert batch.scored_targets.tolist() == [3, 6, 4, 5, 7, 9]
    assert batch.scored_segment.tolist() == [0, 0, 1, 1, 1, 3]
    # What was trained on is counted the same in every layout.
    assert batch.tokens == 4 + 5 + 2


def test_a_plain_packed_row_has_a_prompt_before_each_answer():
    batch = collate(a_dataset(([1, 2], [3], [4, 5])), [0], layout="plain", score_prompts=True)
    assert batch.input_ids.tolist() == [[1, 2, 3, 1, 2, 4, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert batch.spans == ((0, 2, 1, 0), (3, 2, 2, 0))
    assert batch.scored_positions.tolist() == [1, 4, 5, 0]
    assert batch.scored_targets.tolist() == [3, 4, 5, 2]


@given(pair_lists, st.booleans())
def test_every_layout_scores_the_same_tokens(pairs: list[Pair], score_prompts: bool):
    rows, plain, shared = (
        collate(a_dataset(*pairs), range(len(pairs)), score_prompts=score_prompts, layout=layout)
        for layout in ("off", "plain", "shared")
    )
    for packed in (plain, shared):
        for name in ("scored_targets", "scored_segment", "scored_head", "answer_tokens", "prompt_tokens"):
            assert torch.equal(getattr(packed, name), getattr(rows, name))
        # Positions count up from the start of each token's own sequence, whatever lies between in the row.
        for field in ("position_ids", "input_ids"):
            found, expected = (
                getattr(batch, field).flatten()[batch.scored_positions].tolist() for batch in (packed, rows)
            )
            assert found == expected
        assert packed.tokens == rows.tokens
    assert shared.input_ids.numel() == sum(len(p) + len(c) + len(r) for p, c, r in pairs)


def test_an_unpaired_example_has_one_row():
    batch = collate(a_dataset(([1, 2], [], [4, 5]), ([6], [7, 8], [])), [0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 4, 5], [6, 7, 8, 0]]
    assert batch.scored_segment.tolist() == [1, 1, 2, 2]
    assert batch.segments == 4
    assert batch.answer_tokens.tolist() == [[0, 2], [2, 0]]
    # Without a counterpart all of an answer is its head.
    assert batch.scored_head.all()
    assert batch.tokens == 7


def test_prompts_are_scored_once_for_each_pair_but_for_their_first_token():
    batch = collate(a_dataset(([1, 2, 3], [4], [5]), ([6], [7], [8])), [0, 1], score_prompts=True)
    # Segments 4 and 5 are the prompts; the second has no token that follows another.
    assert batch.segments == 6
    assert predicted(batch, 4) == ([2, 3], [1])
    assert predicted(batch, 5) == ([], [])
    assert batch.prompt_tokens.tolist() == [2, 0]
    # Answers are scored as without.
    assert predicted(batch, 0) == ([4], [1, 2, 3])
    assert predicted(batch, 3) == ([8], [6])


def test_an_undesirable_answers_prompt_is_not_scored():
    # It has no likelihood term that it could be part of.
    batch = collate(a_dataset(([1, 2, 3], [], [5])), [0], score_prompts=True)
    assert batch.scored_segment.tolist() == [1]
    assert batch.segments == 3


@given(pair_lists, st.booleans())
def test_every_answer_token_is_scored_exactly_once_and_nothing_else_is(pairs: list[Pair], score_prompts: bool):
    batch = collate(a_dataset(*pairs), range(len(pairs)), score_prompts=score_prompts)
    flat = batch.input_ids.flatten()
    # The target is the token after the position that predicts it, and no position predicts twice.
    assert torch.equal(flat[batch.scored_positions + 1], batch.scored_targets)
    assert len(set(batch.scored_positions.tolist())) == len(batch.scored_positions)
    expected = 0
    for index, (prompt, chosen, rejected) in enumerate(pairs):
        for side, answer in enumerate((chosen, rejected)):
            assert predicted(batch, 2 * index + side) == ((answer, prompt) if answer else ([], []))
            assert batch.answer_tokens[index, side] == len(answer)
            expected += len(answer)
        if score_prompts and chosen:
            assert predicted(batch, 2 * len(pairs) + index)[0] == prompt[1:]
            expected += len(prompt) - 1
    assert len(batch.scored_targets) == len(batch.scored_segment) == len(batch.scored_head) == expected
    assert int(batch.scored_segment.max()) < batch.segments


@given(pair_lists)
def test_heads_are_as_long_as_the_shorter_answer(pairs: list[Pair]):
    batch = collate(a_dataset(*pairs), range(len(pairs)), score_prompts=True)
    for index, (prompt, chosen, rejected) in enumerate(pairs):
        shorter = min(len(chosen), len(rejected)) or max(len(chosen), len(rejected))
        for side, answer in enumerate((chosen, rejected)):
            heads = batch.scored_head[batch.scored_segment == 2 * index + side].tolist()
            assert heads == [True] * min(shorter, len(answer)) + [False] * max(0, len(answer) - shorter)
        of_prompt = batch.scored_head[batch.scored_segment == 2 * len(pairs) + index].tolist()
        assert of_prompt == [True] * (len(prompt) - 1 if chosen else 0)


@given(pair_lists)
def test_rows_hold_prompt_and_answer_and_padding_behind_them(pairs: list[Pair]):
    batch = collate(a_dataset(*pairs), range(len(pairs)))
    rows = [prompt + answer for prompt, *answers in pairs for answer in answers if answer]
    length = max(len(row) for row in rows)
    assert batch.input_ids.tolist() == [row + [0] * (length - len(row)) for row in rows]
    assert batch.tokens == sum(len(row) for row in rows)


def test_indices_pick_pairs_and_weight_marks_them():
    data = a_dataset(([1], [2], [3]), ([4], [5], [6]), ([7], [8], [9]), truncated=True)
    batch = collate(data, [2, 0], weight=0.0)
    assert batch.pairs.tolist() == [2, 0]
    assert batch.weight.tolist() == [0.0, 0.0]
    assert batch.input_ids[0].tolist() == [7, 8]
    # They only keep a rank in step, so nothing of them is counted.
    assert (batch.tokens, batch.truncated) == (0, 0)
    counted = collate(data, [2, 0])
    assert (counted.tokens, counted.truncated) == (8, 2)


@pytest.mark.parametrize("pair", [([], [1], [2]), ([], [1], []), ([], [], [2])])
def test_a_pair_without_a_prompt_is_refused(pair: Pair):
    # Its first answer token would have nothing to be predicted from.
    with pytest.raises(ValueError, match="pair 1: expected a prompt"):
        collate(a_dataset(([1], [2], [3]), pair), [0, 1])


def test_moving_keeps_every_field():
    batch = collate(a_dataset(([1, 2], [3], [4, 5])), [0], score_prompts=True)
    moved = batch.to(torch.device("meta"))
    for name, value in vars(batch).items():
        there = getattr(moved, name)
        if name == "pairs":
            assert there is value, "the pairs are looked up on the CPU"
        elif isinstance(value, torch.Tensor):
            assert (there.device.type, there.shape, there.dtype) == ("meta", value.shape, value.dtype), name
        else:
            assert there == value, name


@given(pair_lists, st.sampled_from(["shared", "plain"]))
def test_sequences_are_the_prompts_with_their_answers(pairs: list[Pair], layout: str):
    batch = collate(a_dataset(*pairs), range(len(pairs)), layout=layout)
    wanted = []
    for prompt, chosen, rejected in pairs:
        # In a shared row a rejected answer without a chosen one leaves its prompt as a sequence of its own.
        wanted += [prompt + chosen] if chosen or layout == "shared" else []
        wanted += [prompt + rejected] if rejected else []
    assert batch.sequences is not None
    row = batch.input_ids[0]
    keys = row if batch.sequences.keys is None else row[batch.sequences.keys]
    starts = batch.sequences.key_bounds.tolist()
    found = [keys[start:end].tolist() for start, end in itertools.pairwise(starts)]
    assert found == wanted
    queries = batch.sequences.query_bounds
    assert queries[-1] == len(row)
    assert batch.sequences.longest_query == queries.diff().max()
    assert batch.sequences.longest_key == batch.sequences.key_bounds.diff().max()


def test_copies_count_the_sequences_that_a_token_stands_in():
    data = a_dataset(([1, 2], [3], [4, 5]), ([6], [7], []))
    assert collate(data, [0, 1], layout="shared").copies.tolist() == [2, 2, 1, 1, 1, 1, 1]
    assert collate(data, [0, 1], layout="plain").copies.tolist() == [1] * 9
    # A row for each answer; the shorter ones are padded.
    assert collate(data, [0, 1]).copies.tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0]
    assert collate(data, [0], weight=0.0, layout="shared").copies.tolist() == [0] * 5
