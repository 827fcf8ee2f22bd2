"""Numbers about the data, and the held-out split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_trainer import datastats
from dpo_trainer.dataset import PairDataset, TokenPair

pytestmark = pytest.mark.unit


def dataset(*pairs) -> PairDataset:
    return PairDataset.from_pairs(
        TokenPair(*(np.array(part, dtype=np.int32) for part in pair), row=i) for i, pair in enumerate(pairs)
    )


def test_statistics():
    found = datastats.describe(
        dataset(([1], [2, 3], [4]), ([1], [4], [2, 3]), ([1], [2, 3], [4]), ([5, 6, 7], [8], [9]))
    )
    assert found == {
        "pairs": 4,
        "tokens": 1 + 3 + 1 + 3 + 1 + 3 + 3 + 2,
        "length": {
            "prompt": {"p50": 1, "p95": 3, "max": 3},
            "chosen": {"p50": 2, "p95": 2, "max": 2},
            "rejected": {"p50": 1, "p95": 2, "max": 2},
        },
        "longest": 4,
        "chosen_longer": 0.5,
        "chosen_shorter": 0.25,
        "duplicate_pairs": 1,
        "contradicting_pairs": 2,
    }


def test_no_pairs_have_no_statistics():
    found = datastats.describe(dataset())
    assert (found["pairs"], found["longest"], found["chosen_longer"]) == (0, 0, None)


def test_pairs_with_a_prompt_of_the_training_data_are_counted():
    train = dataset(([1], [2], [3]), ([4, 5], [2], [3]))
    assert datastats.shared_prompts(train, dataset(([1], [8], [9]), ([1], [3], [2]), ([4], [5], [3]))) == 2


_data = st.lists(st.integers(0, 8), min_size=1, max_size=40)


@given(_data, st.floats(0.01, 0.5), st.integers(0, 5))
def test_held_out_pairs_share_no_prompt_and_are_never_too_many(prompts, fraction, seed):
    made = dataset(*(([p], [100], [101]) for p in prompts))
    keep, held = datastats.hold_out(made, fraction, seed)
    assert sorted(keep + held) == list(range(len(prompts)))
    assert not {prompts[i] for i in keep} & {prompts[i] for i in held}
    assert len(held) <= round(fraction * len(prompts))
    assert (keep, held) == datastats.hold_out(made, fraction, seed)


def test_the_share_is_exact_when_prompts_are_distinct_and_the_seed_decides():
    made = dataset(*(([i], [100], [101]) for i in range(200)))
    one, other = (set(datastats.hold_out(made, 0.1, seed)[1]) for seed in (0, 1))
    assert len(one) == len(other) == 20
    assert one != other
