"""Several sources become one training set, by their weights; nothing is on both sides of a held-out split."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api.data import Data
from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.data import mixture
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.prepare.record import spec_hash
from dpo_trainer.runtime.errors import TrainerError
from tests.unit.trainer.place import Place, rows
from tests.unit.trainer.tiny import write_jsonl

pytestmark = pytest.mark.unit


def data(*weights: float, **more) -> Data:
    train, *others = ({"source": "x", "weight": float(weight)} for weight in weights)
    return Data.model_validate({"train": train, "mixture": others, **more})


def pairs(source: int, count: int) -> PairDataset:
    """Pairs with prompts of their own; row is the number of the pair."""
    return PairDataset.from_pairs(
        TokenPair(np.array([source, i]), np.array([1, 2]), np.array([3]), i) for i in range(count)
    )


def mixed(spec: Data, *counts: int, seed: int = 0) -> mixture.Mixed:
    return mixture.mix(spec, seed, {name: pairs(i, counts[i]) for i, name in enumerate(mixture.sources(spec))})


def prompts(dataset: PairDataset) -> list[tuple[int, int]]:
    return [(int(dataset[i].prompt[0]), int(dataset[i].prompt[1])) for i in range(len(dataset))]


def test_one_source_with_weight_1_is_used_as_it_is():
    found = pairs(0, 5)
    assert mixture.mix(data(1), 0, {"train": found}).train is found


def test_sources_keep_their_order_when_nothing_is_weighted():
    assert prompts(mixed(data(1, 1), 3, 2).train) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


@given(st.floats(0.01, 5), st.integers(1, 30), st.integers(0, 3))
def test_a_fractional_weight_adds_a_random_part_without_repeats(weight, count, seed):
    found = mixture.weighted(list(range(count)), weight, np.random.default_rng(seed))
    whole, part = int(weight), round((weight - int(weight)) * count)
    times = Counter(found)
    assert all(whole <= times[i] <= whole + 1 for i in range(count))
    assert sum(times[i] == whole + 1 for i in range(count)) == part
    assert found[: whole * count] == list(range(count)) * whole
    assert found[whole * count :] == sorted(found[whole * count :])


def test_only_the_seed_decides_which_half_is_used():
    first, again, other = (prompts(mixed(data(0.5, 1.5), 40, 40, seed=seed).train) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert Counter(source for source, _ in first) == {0: 20, 1: 60}
    # Sources of the same size do not get the same half.
    assert {i for source, i in first if source == 0} != {i for source, i in first[60:]}


def test_held_out_pairs_are_not_repeated_into_training():
    spec = data(2, 1.5, evalFraction=0.25)
    found = mixed(spec, 20, 20)
    assert found.evaluation is not None
    held, used = prompts(found.evaluation), prompts(found.train)
    assert len(held) == 10
    assert not set(held) & set(used)
    assert sum(found.held_out.values()) == 10
    assert found.used == dict(zip(("train", "mixture[0]"), Counter(source for source, _ in used).values(), strict=True))
    assert found.used["train"] == 2 * (20 - found.held_out["train"])


def test_a_weight_that_leaves_nothing_is_refused():
    with pytest.raises(TrainerError, match=r"mixture\[0\]: weight 0.01 of 5 pairs leaves none") as failure:
        mixed(data(1, 0.01), 5, 5)
    assert failure.value.exit_code == ExitCode.BAD_DATASET


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, False), ({"mixture": [{"source": "m", "weight": 2.0}]}, False), ({"mixture": [{"source": "m", "weight": 1.5}]}, True),
        ({"train": {"source": "t", "weight": 0.5}}, True), ({"evalFraction": 0.1}, True),
    ],
)  # fmt: skip
def test_the_seed_is_in_the_hash_only_if_it_affects_the_data(tmp_path, settings, changes):
    place = Place(tmp_path)
    hashes = {spec_hash(place.job(training={"seed": seed}, **settings).spec) for seed in (0, 1)}
    assert (len(hashes) == 2) is changes


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_sources_of_different_formats_are_counted_apart(place):
    scored = [{"prompt": f"S{i}:", "responses": [" a", " b"], "scores": [i % 2, 1]} for i in range(8)]
    other = write_jsonl(place.root / "scored.jsonl", [*scored, {"prompt": "S", "responses": []}])
    report = place.run(mixture=[{"source": str(other), "weight": 2.0}], filters={"maxBadRows": 0.2, "minScoreGap": 1.0})
    # Rows whose scores are equal prefer nothing; train has no scores, which minScoreGap does not hold against it.
    assert (report.train_pairs, report.dropped) == (20 + 2 * 4, {"missing_column": 1, "tie": 4})
    inputs = place.made["inputs"]
    assert {name: (facts["format"], facts["rows"], facts["pairs"], facts["used"]) for name, facts in inputs.items()} == {
        "train": ("pairs", 20, 20, 20), "mixture[0]": ("scored", 9, 4, 8),
    }  # fmt: skip
    assert {line["split"] for line in place.dropped} == {"mixture[0]"}
    train = PairDataset.open(place.work.train_data)
    assert [train[i].row for i in range(20, 28)] == [0, 2, 4, 6] * 2


def test_a_filter_without_its_column_in_any_source_is_refused(place):
    other = write_jsonl(place.root / "other.jsonl", rows(3, more=1))
    message = place.refused(
        ExitCode.INVALID_CONFIGURATION, mixture=[{"source": str(other)}], filters={"minConfidence": 0.5}
    )
    assert message.startswith("train and mixture[0]: filters.minConfidence needs a number")
    assert "found columns prompt, chosen, rejected, more." in message


def test_an_empty_source_is_not_blamed_on_a_filter_of_another_source(place):
    write_jsonl(place.train, rows(4, score_chosen=2, score_rejected=1))
    other = write_jsonl(place.root / "other.jsonl", rows(4))
    filters = {"minScoreGap": 1.0, "dropDuplicates": True}
    message = place.refused(ExitCode.BAD_DATASET, mixture=[{"source": str(other)}], filters=filters)
    assert message.startswith("mixture[0]: no usable pair in 4 rows (duplicate 4)")


def test_a_bad_source_of_a_mixture_is_named(place):
    bad = write_jsonl(place.root / "bad.jsonl", [{"prompt": "Q", "chosen": "a", "rejected": "a"}])
    message = place.refused(ExitCode.BAD_DATASET, mixture=[{"source": str(place.train)}, {"source": str(bad)}])
    assert message.startswith("mixture[1]: 1 of 1 rows")


def test_duplicates_are_dropped_across_sources_but_not_across_splits(place):
    same = {"source": str(place.train)}
    report = place.run(mixture=[same], eval=same, filters={"dropDuplicates": True}, train={**same, "limit": 15})
    assert (report.train_pairs, report.eval_pairs, report.dropped) == (20, 20, {"duplicate": 15})


def test_unpaired_data_require_kto(place):
    single = [{"prompt": f"Q{i}:", "completion": f" a{i}", "label": i % 2 == 0} for i in range(6)]
    other = write_jsonl(place.root / "single.jsonl", single)
    message = place.refused(ExitCode.INVALID_CONFIGURATION, mixture=[{"source": str(other)}], method="simpo")
    assert "mixture[0]: the data are unpaired (column completion with label), and method.name is simpo" in message
    report = place.run(mixture=[{"source": str(other)}], method="kto")
    assert report.train_pairs == 26
    lengths = PairDataset.open(place.work.train_data).lengths
    assert (lengths[:20, 1:] > 0).all()
    assert (lengths[20:, 1:] > 0).tolist() == [[True, False], [False, True]] * 3
