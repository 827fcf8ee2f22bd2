"""Statistics of the data, and the held-out split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_trainer.data import statistics
from dpo_trainer.data.dataset import PairDataset, TokenPair

pytestmark = pytest.mark.unit


def dataset(*pairs) -> PairDataset:
    return PairDataset.from_pairs(
        TokenPair(*(np.array(part, dtype=np.int32) for part in pair), row=i) for i, pair in enumerate(pairs)
    )


def test_statistics():
    found = statistics.describe(
        dataset(([1], [2, 3], [4]), ([1], [4], [2, 3]), ([1], [2, 3], [4]), ([5, 6, 7], [8], [9]))
    )
    assert found == {
        "pairs": 4,
        "desirable": 0,
        "undesirable": 0,
        "tokens": (1 + 3) * 3 + 3 + 2,
        "truncated": 0,
        "length": {
            "prompt": {"p50": 1, "p95": 3, "max": 3},
            "chosen": {"p50": 2, "p95": 2, "max": 2},
            "rejected": {"p50": 1, "p95": 2, "max": 2},
        },
        "longest": 4,
        "prompt_share": round(6 / 17, 4),
        "chosen_longer": 0.5,
        "chosen_shorter": 0.25,
        "same_length": 0.25,
        "length_baseline": 0.625,
        "length_difference": 1.0,
        "length_ratio": 2.0,
        "near_identical": 0.0,
        "distinct_prompts": 2,
        "duplicate_pairs": 1,
        "contradicting_pairs": 2,
    }


def test_unpaired_examples_count_by_label_without_length_statistics():
    found = statistics.describe(
        dataset(([1], [2, 3, 4], []), ([1], [], [2, 3, 4]), ([1], [], [5]), ([1], [], [5]), ([9], [7], [8, 8]))
    )
    assert (found["pairs"], found["desirable"], found["undesirable"]) == (5, 1, 3)
    assert found["length"]["chosen"] == {"p50": 3, "p95": 3, "max": 3}
    assert (found["chosen_longer"], found["chosen_shorter"], found["length_baseline"]) == (0.0, 1.0, 1.0)
    assert (found["duplicate_pairs"], found["contradicting_pairs"]) == (1, 1)
    assert statistics.describe(dataset(([1], [2], []), ([1], [], [3])))["chosen_longer"] is None


def test_no_pairs_have_no_statistics():
    found = statistics.describe(dataset())
    assert (found["pairs"], found["longest"], found["chosen_longer"], found["prompt_share"]) == (0, 0, None, None)
    assert (found["duplicate_pairs"], found["contradicting_pairs"], found["distinct_prompts"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "alike"),
    [
        (list(range(10)), [*range(9), 99], True),
        (list(range(10)), [99, *range(1, 10)], True),
        (list(range(10)), [*range(5), 99, *range(6, 10)], True),
        (list(range(10)), [*range(4), 98, 99, *range(6, 10)], True),
        (list(range(10)), [*range(3), 97, 98, 99, *range(6, 10)], False),
        (list(range(10)), list(range(9)), True),
        (list(range(10)), list(range(8)), True),
        (list(range(10)), list(range(7)), False),
        (list(range(8)), list(range(6)), True),
        (list(range(7)), list(range(6)), False),  # too short for one word to be little
        ([1] * 10, [1] * 5, False),  # what both begin with is not counted again from the end
    ],
)
def test_near_identical_counts_common_beginnings_and_ends(chosen, rejected, alike):
    other = ([7], [1, 2, 3], [4, 5, 6])
    assert statistics.describe(dataset(other, ([8], chosen, rejected), other))["near_identical"] == round(alike / 3, 4)


def test_evaluation_pairs_that_are_in_train_are_counted():
    train = statistics.part_keys(dataset(([1], [2], [3]), ([4, 5], [2], [3])))
    held = statistics.part_keys(dataset(([1], [8], [9]), ([1], [2], [3]), ([4], [5], [3])))
    assert statistics.overlap(train, held) == {"prompts": 2, "pairs": 1}


_part = st.lists(st.integers(0, 3), max_size=10)
_pair = st.tuples(_part, _part, _part)


@given(st.lists(_pair, max_size=30), st.integers(1, 20))
def test_counts_by_hash_equal_counts_by_token_for_any_batch_size(pairs, run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RUN_TOKENS", run)
        found = statistics.describe(dataset(*pairs))
    whole = [tuple(map(tuple, pair)) for pair in pairs]
    reverse = [(p, r, c) for p, c, r in whole]
    assert found["duplicate_pairs"] == len(whole) - len(set(whole))
    assert found["contradicting_pairs"] == sum(pair in whole[:i] for i, pair in enumerate(reverse))
    assert found["distinct_prompts"] == len({pair[0] for pair in whole})
    both = [(c, r) for _, c, r in whole if c and r]
    assert found["near_identical"] == (round(sum(map(_alike, both)) / len(both), 4) if both else None)


def _alike(answers) -> bool:
    one, other = answers
    most = min(len(one), len(other))
    begin = next((i for i in range(most) if one[i] != other[i]), most)
    end = next((i for i in range(most - begin) if one[-1 - i] != other[-1 - i]), most - begin)
    longer = max(len(one), len(other))
    return begin + end >= 0.9 * longer or (longer >= 8 and longer - begin - end <= 2)


@pytest.mark.parametrize(
    ("desirable", "undesirable", "pairs", "expected"),
    [
        (100, 100, 0, (1.0, 1.0)),
        (120, 100, 0, (1.0, 1.0)),
        (100, 400, 0, (4.0, 1.0)),
        (400, 100, 0, (1.0, 3.0)),
        (1, 0, 99, (1.0, 1.0)),
        (100, 0, 0, (1.0, 1.0)),
        (1, 100_000, 0, (100.0, 1.0)),
    ],
)
def test_kto_weights_bring_the_ratio_of_answers_to_between_1_and_4_thirds(desirable, undesirable, pairs, expected):
    """400 undesirable, 100 desirable: 4 x 100 / (1 x 400) = 1. The other way: 1 x 400 / (3 x 100) = 4/3."""
    counts = {"pairs": desirable + undesirable + pairs, "desirable": desirable, "undesirable": undesirable}
    assert statistics.kto_weights(counts) == dict(zip(("desirable", "undesirable"), expected, strict=True))


def test_pairs_need_no_weights_for_kto():
    assert statistics.kto_weights({"pairs": 10, "desirable": 0, "undesirable": 0}) is None


_data = st.lists(st.integers(0, 8), min_size=1, max_size=40)


@given(_data, st.floats(0.01, 0.5), st.integers(0, 5))
def test_held_out_pairs_share_no_prompt_and_stay_in_the_fraction(prompts, fraction, seed):
    made = dataset(*(([p], [100], [101]) for p in prompts))
    keep, held = statistics.hold_out(made, fraction, seed)
    assert sorted(keep + held) == list(range(len(prompts)))
    assert not {prompts[i] for i in keep} & {prompts[i] for i in held}
    assert len(held) <= round(fraction * len(prompts))
    assert (keep, held) == statistics.hold_out(made, fraction, seed)


def test_the_held_out_share_is_exact_for_distinct_prompts():
    made = dataset(*(([i], [100], [101]) for i in range(200)))
    one, other = (set(statistics.hold_out(made, 0.1, seed)[1]) for seed in (0, 1))
    assert len(one) == len(other) == 20
    assert one != other
