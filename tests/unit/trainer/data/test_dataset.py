"""Tokenized pairs on disk."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.data.dataset import PairDataset, TokenPair, mismatched
from dpo_trainer.runtime.errors import TrainerError

pytestmark = pytest.mark.unit


def pair(prompt, chosen, rejected, row=0, truncated=False):
    return TokenPair(
        *(np.array(part, dtype=np.int32) for part in (prompt, chosen, rejected)), row=row, truncated=truncated
    )


def as_lists(dataset):
    return [
        (p.prompt.tolist(), p.chosen.tolist(), p.rejected.tolist(), p.row, p.truncated)
        for p in (dataset[i] for i in range(len(dataset)))
    ]


_ids = st.lists(st.integers(0, 2**31 - 1), max_size=5)
_pairs = st.lists(st.tuples(_ids, _ids, _ids, st.integers(0, 2**40), st.booleans()), max_size=6)


@settings(max_examples=25)  # each syncs files
@given(_pairs)
def test_a_saved_dataset_opens_unchanged(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("pairs")
    made = PairDataset.from_pairs(pair(*p) for p in pairs)
    made.save(folder)
    opened = PairDataset.open(folder)
    assert as_lists(made) == as_lists(opened) == pairs
    assert opened.digest == made.digest
    assert opened.is_intact()
    assert opened.lengths.tolist() == [[len(part) for part in p[:3]] for p in pairs]
    assert opened.largest_token == max((token for p in pairs for part in p[:3] for token in part), default=-1)


def test_select_keeps_order_and_rows():
    made = PairDataset.from_pairs([pair([1], [2], [3], 10), pair([], [4], [5, 6], 11, True), pair([7], [8], [9], 12)])
    assert as_lists(made.select([2, 1])) == [([7], [8], [9], 12, False), ([], [4], [5, 6], 11, True)]


def test_the_digest_depends_on_where_a_prompt_ends():
    one = PairDataset.from_pairs([pair([1, 2], [3], [4])])
    other = PairDataset.from_pairs([pair([1], [2, 3], [4])])
    assert one.digest != other.digest


def test_the_digest_depends_on_which_answer_is_missing():
    desirable = PairDataset.from_pairs([pair([1, 2], [3], [])])
    undesirable = PairDataset.from_pairs([pair([1, 2], [], [3])])
    assert desirable.digest != undesirable.digest


def test_the_digest_does_not_depend_on_source_rows():
    # It is part of the key of cached log-probs, which rows and cuts do not change.
    one = PairDataset.from_pairs([pair([1, 2], [3], [4], 5, True)])
    other = PairDataset.from_pairs([pair([1, 2], [3], [4], 6)])
    assert one.digest == other.digest


def test_a_changed_token_is_detected(tmp_path):
    PairDataset.from_pairs([pair([1, 2], [3], [4])]).save(tmp_path)
    tokens = np.load(tmp_path / "tokens.npy")
    tokens[0] = 9
    np.save(tmp_path / "tokens.npy", tokens)
    assert not PairDataset.open(tmp_path).is_intact()


@pytest.mark.parametrize(
    "damage", ["no meta", "no tokens", "short tokens", "no cuts", "short cuts", "pickle", "no counts"]
)
def test_an_incomplete_folder_is_refused(tmp_path, damage):
    PairDataset.from_pairs([pair([1, 2], [3], [4])]).save(tmp_path)
    match damage:
        case "no meta":
            (tmp_path / "meta.json").unlink()
        case "no tokens":
            (tmp_path / "tokens.npy").unlink()
        case "short tokens":
            np.save(tmp_path / "tokens.npy", np.zeros(2, np.int32))
        case "no cuts":
            (tmp_path / "cut.npy").unlink()
        case "short cuts":
            np.save(tmp_path / "cut.npy", np.zeros(0, np.bool_))
        case "pickle":
            np.save(tmp_path / "tokens.npy", np.array([{}], dtype=object), allow_pickle=True)
        case "no counts":
            (tmp_path / "meta.json").write_text(json.dumps({}))
    with pytest.raises(TrainerError, match="run prepare again") as failure:
        PairDataset.open(tmp_path)
    assert failure.value.exit_code == ExitCode.VOLUME_ERROR


# Prompts with answers to other prompts.


def others_of(*pairs):
    found = mismatched(PairDataset.from_pairs(pairs))
    assert found is not None
    return [(prompt, chosen, rejected) for prompt, chosen, rejected, *_ in as_lists(found)]


def test_each_prompt_gets_the_answers_before_it():
    found = others_of(pair([1], [11], [12]), pair([2], [21], [22]), pair([3], [31], [32]))
    assert found == [([1], [31], [32]), ([2], [11], [12]), ([3], [21], [22])]


def test_answers_of_an_equal_prompt_are_skipped():
    # The second of two equal prompts takes the second example before the two, also across the end.
    found = others_of(pair([1], [11], []), pair([1], [], [12]), pair([2], [21], []), pair([2], [], [22]))
    assert found == [([1], [], [22]), ([1], [21], []), ([2], [], [12]), ([2], [11], [])]
    found = others_of(pair([1], [11], []), pair([2], [21], []), pair([2], [], [22]), pair([1], [], [12]))
    # The run of [1] begins at the end of the circle.
    assert found == [([1], [21], []), ([2], [11], []), ([2], [], [12]), ([1], [], [22])]


def test_mostly_equal_prompts_still_get_other_answers():
    found = others_of(*(pair([1], [10 + n], []) for n in range(4)), pair([2], [20], []))
    assert [chosen for _, chosen, _ in found] == [[20], [20], [20], [20], [13]]


def test_other_answers_are_cut_to_the_longest_sequence():
    # The longest sequence has 5 tokens, so next to a prompt of 4 there is room for one.
    made = mismatched(PairDataset.from_pairs([pair([1, 1], [2, 3, 4], [5]), pair([6, 6, 6, 6], [7], [8])]))
    assert made is not None
    assert as_lists(made) == [([1, 1], [7], [8], 0, False), ([6, 6, 6, 6], [2], [5], 0, True)]


@pytest.mark.parametrize("prompts", [[], [[1]], [[1, 2]] * 3])
def test_without_a_second_prompt_there_are_no_other_answers(prompts):
    assert mismatched(PairDataset.from_pairs(pair(prompt, [3], [4]) for prompt in prompts)) is None


_prompt = st.lists(st.integers(1, 2), min_size=1, max_size=2)
_answer = st.lists(st.integers(0, 99), min_size=1, max_size=6)
_examples = st.tuples(_prompt, _answer, _answer, st.sampled_from(["both", "chosen", "rejected"])).map(
    lambda drawn: (drawn[0], drawn[1] if drawn[3] != "rejected" else [], drawn[2] if drawn[3] != "chosen" else [])
)


@given(st.lists(_examples, min_size=2, max_size=8))
def test_other_answers_belong_to_another_prompt_and_fit(drawn):
    data = PairDataset.from_pairs(pair(*example, row=row) for row, example in enumerate(drawn))
    made = mismatched(data)
    assert (made is None) == (len({tuple(prompt) for prompt, _, _ in drawn}) == 1)
    if made is None:
        return
    longest = max(len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in drawn)
    assert len(made) == len(data)
    for row, (mine, (prompt, chosen, rejected, from_row, _)) in enumerate(zip(drawn, as_lists(made), strict=True)):
        assert (prompt, from_row) == (mine[0], row)
        room = longest - len(prompt)
        assert room >= 1
        # Some example of another prompt has these answers, on these sides, up to where they were cut.
        sources = [(c[:room], r[:room]) for other, c, r in drawn if other != prompt]
        assert (chosen, rejected) in sources
        assert chosen or rejected
    # The reference log-probs of it are cached, too.
    again = mismatched(data)
    assert again is not None
    assert again.digest == made.digest


def test_scores_are_stored_only_where_there_are_any(tmp_path):
    plain = PairDataset.from_pairs([pair([1], [2], [3])])
    scored = PairDataset.from_pairs([pair([1], [2], [3]), replace(pair([1], [4], [5]), score_gap=2.5)])
    scored.save(tmp_path)
    opened = PairDataset.open(tmp_path)
    assert opened.score_gaps.tolist()[1] == 2.5
    assert np.isnan(opened.score_gaps).tolist() == [True, False]
    assert opened.select([1]).score_gaps.tolist() == [2.5]
    # They are no part of the digest, which reference log-probs are cached by.
    assert PairDataset.from_pairs([pair([1], [2], [3]), pair([1], [4], [5])]).digest == opened.digest
    plain.save(tmp_path)
    assert not (tmp_path / "gaps.npy").exists()
    assert np.isnan(PairDataset.open(tmp_path).score_gaps).all()
