"""Pairs that are too long are cut or left out, and an answer that had tokens keeps one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_trainer.data.tokens.truncation import Limits, truncate

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("truncation", "keep", "expected"),
    [("keep_end", 0, [6, 7, 8, 9]), ("keep_end", 1, [0, 7, 8, 9]), ("keep_start", 1, [0, 1, 2, 3])],
)
def test_which_part_of_a_long_prompt_stays(truncation, keep, expected):
    assert truncate(list(range(10)), [1] * 9, [2] * 9, Limits(8, None, truncation), keep)[0] == expected


def test_short_answers_leave_budget_to_the_prompt():
    prompt, chosen, rejected = truncate(list(range(100)), [1, 2], [3], Limits(20, None, "keep_end"))
    assert (len(prompt), chosen, rejected) == (18, [1, 2], [3])


def test_max_prompt_length_holds_even_within_max_length():
    assert len(truncate(list(range(10)), [1], [2], Limits(100, 4, "keep_end"))[0]) == 4


_length = st.integers(1, 60)


@settings(max_examples=300)
@given(
    _length,
    _length,
    _length,
    st.integers(8, 40),
    st.none() | st.integers(1, 39),
    st.sampled_from(["keep_end", "keep_start", "drop"]),
)
def test_truncation_invariants(p, c, r, max_length, max_prompt_length, truncation):
    limits = Limits(max_length, max_prompt_length, truncation)
    before = (list(range(p)), list(range(1000, 1000 + c)), list(range(2000, 2000 + r)))
    found = truncate(*before, limits, 1)
    assert (found is None) == (truncation == "drop" and not limits.fit(*before))
    if found is None:
        return
    prompt, chosen, rejected = found
    assert 1 <= len(prompt) <= (max_prompt_length or max_length)
    assert len(prompt) + max(len(chosen), len(rejected)) <= max_length
    assert chosen == before[1][: len(chosen)]
    assert rejected == before[2][: len(rejected)]
    assert chosen
    assert rejected
    if p + max(c, r) <= max_length and p <= (max_prompt_length or p):
        assert (prompt, chosen, rejected) == before
    elif len(prompt) < p and max_prompt_length is None:
        assert len(prompt) >= max_length // 2  # a long answer never takes more than half from a long prompt


@pytest.mark.parametrize(
    ("prompt", "answer", "max_prompt", "fits"),
    [
        (4, 4, None, True),
        (5, 4, None, False),
        (4, 5, None, False),
        (4, 4, 4, True),
        (4, 1, 3, False),
        (8, 1, None, False),
    ],
)
def test_drop_removes_too_long_pairs_and_keeps_the_rest_unchanged(prompt, answer, max_prompt, fits):
    pair = (list(range(prompt)), [7] * answer, [8])
    assert truncate(*pair, Limits(8, max_prompt, "drop")) == (pair if fits else None)


@given(_length, _length, st.integers(8, 40), st.sampled_from(["keep_end", "keep_start"]), st.booleans())
def test_an_unpaired_example_keeps_its_only_answer(p, a, max_length, truncation, desirable):
    answer = list(range(1000, 1000 + a))
    found = truncate(
        list(range(p)), *((answer, []) if desirable else ([], answer)), Limits(max_length, None, truncation)
    )
    kept, other = (found[1], found[2]) if desirable else (found[2], found[1])
    assert kept
    assert kept == answer[: len(kept)]
    assert other == []
    assert 1 <= len(found[0]) <= max_length - len(kept)
