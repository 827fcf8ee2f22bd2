"""Tokenized pairs on disk."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.dataset import PairDataset, TokenPair
from dpo_trainer.errors import TrainerError

pytestmark = pytest.mark.unit


def pair(prompt, chosen, rejected, row=0):
    return TokenPair(*(np.array(part, dtype=np.int32) for part in (prompt, chosen, rejected)), row=row)


def as_lists(dataset):
    return [
        (p.prompt.tolist(), p.chosen.tolist(), p.rejected.tolist(), p.row)
        for p in (dataset[i] for i in range(len(dataset)))
    ]


_ids = st.lists(st.integers(0, 2**31 - 1), max_size=5)
_pairs = st.lists(st.tuples(_ids, _ids, _ids, st.integers(0, 2**40)), max_size=6)


@given(_pairs)
def test_what_is_saved_is_opened(tmp_path_factory, pairs):
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
    made = PairDataset.from_pairs([pair([1], [2], [3], 10), pair([], [4], [5, 6], 11), pair([7], [8], [9], 12)])
    assert as_lists(made.select([2, 1])) == [([7], [8], [9], 12), ([], [4], [5, 6], 11)]


def test_the_digest_sees_where_a_prompt_ends():
    one = PairDataset.from_pairs([pair([1, 2], [3], [4])])
    other = PairDataset.from_pairs([pair([1], [2, 3], [4])])
    assert one.digest != other.digest


def test_a_changed_token_is_noticed(tmp_path):
    PairDataset.from_pairs([pair([1, 2], [3], [4])]).save(tmp_path)
    tokens = np.load(tmp_path / "tokens.npy")
    tokens[0] = 9
    np.save(tmp_path / "tokens.npy", tokens)
    assert not PairDataset.open(tmp_path).is_intact()


@pytest.mark.parametrize("damage", ["no meta", "no tokens", "short tokens", "pickle", "meta without counts"])
def test_a_folder_that_is_not_whole_is_refused(tmp_path, damage):
    PairDataset.from_pairs([pair([1, 2], [3], [4])]).save(tmp_path)
    match damage:
        case "no meta":
            (tmp_path / "meta.json").unlink()
        case "no tokens":
            (tmp_path / "tokens.npy").unlink()
        case "short tokens":
            np.save(tmp_path / "tokens.npy", np.zeros(2, np.int32))
        case "pickle":
            np.save(tmp_path / "tokens.npy", np.array([{}], dtype=object), allow_pickle=True)
        case "meta without counts":
            (tmp_path / "meta.json").write_text(json.dumps({}))
    with pytest.raises(TrainerError, match="run prepare again") as failure:
        PairDataset.open(tmp_path)
    assert failure.value.exit_code == ExitCode.VOLUME_ERROR
