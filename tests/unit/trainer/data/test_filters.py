"""Filters leave out valid rows, each for its own reason, and never silently do nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api.data import Columns, Condition, Filters
from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.data.dataset import TokenPair
from dpo_trainer.data.filters import RowFilters, meets
from dpo_trainer.data.formats import Rejection
from dpo_trainer.data.formats.pairs import Reason, TextPair
from tests.unit.trainer.place import Place, rows
from tests.unit.trainer.tiny import write_jsonl

pytestmark = pytest.mark.unit


def chain(seen=None, *, lenient=False, **filters) -> RowFilters:
    return RowFilters(Filters.model_validate(filters), Columns(), set() if seen is None else seen, lenient=lenient)


def reason(found: Rejection | None) -> Reason | None:
    return None if found is None else found.reason


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [
        (0.7, None), (1, None), (0.69, Reason.LOW_CONFIDENCE), (None, Reason.MISSING_COLUMN), ("high", Reason.BAD_CONFIDENCE),
        (True, Reason.BAD_CONFIDENCE), (1.5, Reason.BAD_CONFIDENCE), (float("nan"), Reason.BAD_CONFIDENCE),
    ],
)  # fmt: skip
def test_confidence(confidence, expected):
    found = chain(minConfidence=0.7).after({"confidence": confidence}, TextPair("Q", "a", "b"))
    assert reason(found) == expected
    assert found is None or found.is_bad == (expected is not Reason.LOW_CONFIDENCE)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [(2.0, None), (1.9, Reason.LOW_SCORE_GAP), (-5.0, Reason.LOW_SCORE_GAP), (None, Reason.MISSING_COLUMN)],
)
def test_score_gap_is_chosen_minus_rejected(gap, expected):
    assert reason(chain(minScoreGap=2.0).after({}, TextPair("Q", "a", "b", score_gap=gap))) == expected


@pytest.mark.parametrize(
    ("agreement", "expected"), [(0.75, None), (0.74, Reason.LOW_AGREEMENT), (None, Reason.MISSING_COLUMN)]
)
def test_agreement(agreement, expected):
    assert reason(chain(minAgreement=0.75).after({}, TextPair("Q", "a", "b", agreement=agreement))) == expected


@pytest.mark.parametrize(
    ("value", "operator", "values", "expected"),
    [
        ("en", "In", ["de", "en"], True), ("fr", "In", ["de", "en"], False), (None, "In", ["None", "null"], False),
        ("en", "NotIn", ["de"], True), ("de", "NotIn", ["de"], False), (None, "NotIn", ["de"], True),
        (3, "In", ["3"], True), (3.0, "In", ["3"], True), (3, "In", ["3.0"], True), ("3", "In", ["3.0"], False),
        (True, "In", ["true"], True), (False, "In", ["true"], False), (1, "In", ["true"], False), (True, "In", ["1"], False),
        (["en", "de"], "In", ["de"], True), (["en"], "In", ["de"], False), ([], "In", ["de"], False),
        (["en", "de"], "NotIn", ["de"], False), ({"a": 1}, "In", ["a"], False),
        (4, "AtLeast", ["3.5"], True), (3, "AtLeast", ["3.5"], False), ("4", "AtLeast", ["3.5"], True), (None, "AtLeast", ["0"], False),
        ("four", "AtLeast", ["0"], False), (True, "AtLeast", ["0"], False), (3.5, "AtMost", ["3.5"], True), (4, "AtMost", ["3.5"], False),
        (None, "AtMost", ["9"], False), (0, "Exists", [], True), ("", "Exists", [], True), (None, "Exists", [], False),
        (None, "DoesNotExist", [], True), (0, "DoesNotExist", [], False),
    ],
)  # fmt: skip
def test_conditions(value, operator, values, expected):
    condition = Condition(column="c", operator=operator, values=values)
    assert meets(value, condition) is expected
    found = chain(where=[condition.model_dump()]).before({"c": value})
    assert reason(found) == (None if expected else Reason.CONDITION)


def test_all_conditions_must_hold_and_columns_may_be_dotted():
    found = chain(
        where=[{"column": "info.lang", "values": ["en"]}, {"column": "votes", "operator": "AtLeast", "values": ["2"]}]
    )
    assert found.before({"info": {"lang": "en"}, "votes": 2}) is None
    assert found.before({"info": {"lang": "de"}, "votes": 2}) is not None
    dropped = found.before({"info": {"lang": "en"}, "votes": 1})
    assert dropped is not None
    assert "votes: a number that does not meet filters.where[1] (AtLeast)" in dropped.detail


def pair(prompt: int, chosen: int, rejected: int, row: int = 0) -> TokenPair:
    return TokenPair(*(np.arange(n, dtype=np.int32) for n in (prompt, chosen, rejected)), row)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [(10, 5, None), (11, 5, Reason.LENGTH_RATIO), (5, 11, Reason.LENGTH_RATIO), (9, 0, None), (0, 9, None)],
)
def test_length_ratio_counts_tokens_in_both_directions(chosen, rejected, expected):
    assert reason(chain(maxLengthRatio=2.0).of_tokens(pair(3, chosen, rejected))) == expected


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_only_the_first_of_equal_pairs_is_kept(sizes):
    found = chain(dropDuplicates=True)
    kept = [size for size in sizes if found.of_tokens(pair(*size)) is None]
    assert kept == list(dict.fromkeys(sizes))


def test_duplicates_are_found_across_sources_of_a_mixture():
    seen: set[bytes] = set()
    assert chain(seen, dropDuplicates=True).of_tokens(pair(1, 2, 3)) is None
    assert reason(chain(seen, dropDuplicates=True).of_tokens(pair(1, 2, 3))) == Reason.DUPLICATE
    assert chain(dropDuplicates=True).of_tokens(pair(1, 2, 3)) is None


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_every_filter_counts_its_rows_in_the_report_and_lists_them(place):
    sound = rows(6, lang="en", score_chosen=3, score_rejected=1)
    write_jsonl(place.train, [
        *sound, sound[0], {**sound[1], "lang": "de", "chosen": None}, {**sound[2], "score_chosen": 1.5}, {**sound[3], "chosen": "x" * 90},
    ])  # fmt: skip
    report = place.run(filters={
        "where": [{"column": "lang", "values": ["en"]}], "minScoreGap": 1.0, "maxLengthRatio": 4.0, "dropDuplicates": True,
        "maxBadRows": 0.0,
    })  # fmt: skip
    assert report.train_pairs == 6
    assert report.dropped == {"condition": 1, "duplicate": 1, "length_ratio": 1, "low_score_gap": 1}
    listed = [(line["row"], line["where"], line["reason"]) for line in place.dropped]
    assert sorted(listed) == [
        (6, "train.jsonl line 7", "duplicate"), (7, "train.jsonl line 8", "condition"), (8, "train.jsonl line 9", "low_score_gap"),
        (9, "train.jsonl line 10", "length_ratio"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"minScoreGap": 1.0}, "filters.minScoreGap needs numbers in columns score_chosen and score_rejected"),
        ({"minAgreement": 0.6}, "filters.minAgreement needs voted pairs (format votes), and no row has one"),
        ({"where": [{"column": "language", "values": ["en"]}]}, "filters.where[0] needs a value in column language, and no row has one"),
        ({"where": [{"column": "language", "operator": "NotIn", "values": ["en"]}]}, "filters.where[0] needs a value"),
    ],
)  # fmt: skip
def test_a_filter_that_can_never_apply_is_refused(place, filters, expected):
    message = place.refused(ExitCode.INVALID_CONFIGURATION, filters=filters)
    assert expected in message
    assert "found columns prompt, chosen, rejected" in message


def test_length_ratio_of_single_answers_is_refused(place):
    write_jsonl(place.train, [{"prompt": f"Q{i}", "completion": "a", "label": i % 2} for i in range(4)])
    message = place.refused(ExitCode.INVALID_CONFIGURATION, method="kto", filters={"maxLengthRatio": 2.0})
    assert "filters.maxLengthRatio needs pairs with two answers" in message


def test_bad_rows_are_reported_before_an_unused_filter(place):
    write_jsonl(place.train, [{"prompt": "Q", "chosen": True, "rejected": "b"}] * 3)
    message = place.refused(ExitCode.BAD_DATASET, filters={"minScoreGap": 1.0})
    assert "row 0 (counting from 0; train.jsonl line 1), wrong_type: chosen: expected text, found a boolean" in message


def test_evaluation_pairs_may_lack_a_column_that_a_condition_does_not_need(place):
    write_jsonl(place.train, rows(4, lang="en") + rows(2, lang="de"))
    evaluation = {"source": str(write_jsonl(place.root / "eval.jsonl", rows(3)))}
    without = [{"column": "lang", "operator": "NotIn", "values": ["de"]}]
    report = place.run(filters={"where": without}, eval=evaluation)
    assert (report.train_pairs, report.eval_pairs) == (4, 3)
    place.work.prepared.unlink()
    needed = [{"column": "lang", "values": ["en"]}]
    message = place.refused(ExitCode.INVALID_CONFIGURATION, filters={"where": needed}, eval=evaluation)
    assert message.startswith("eval: filters.where[0] needs a value in column lang, and no row has one")
