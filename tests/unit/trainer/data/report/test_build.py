"""The dataset report: its counts and warnings, and that equal data give equal bytes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dpo_operator.api.diagnosis import WARNINGS, Finding
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.data.report import build as data_report
from dpo_trainer.data.report.warnings import KINDS
from dpo_trainer.data.tokens.truncation import Limits
from dpo_trainer.runtime.workdir import WorkDir

pytestmark = pytest.mark.unit

LIMITS = Limits(64, None, "keep_end")


def pairs(count: int, prompt: int = 4, chosen: int = 6, rejected: int = 6, start: int = 0, cut: int = 0) -> PairDataset:
    """Pairs of which every token is another one; the first `cut` of them were truncated."""
    random = np.random.default_rng(start)

    def tokens(size: int, i: int) -> np.ndarray:
        return np.concatenate([[start + i], random.integers(10_000, 30_000, size - 1)])[:size].astype(np.int32)

    return PairDataset.from_pairs(
        TokenPair(tokens(prompt, i), tokens(chosen, i), tokens(rejected, i)[::-1], i, i < cut) for i in range(count)
    )


def joined(*datasets: PairDataset) -> PairDataset:
    return PairDataset.from_pairs(dataset[i] for dataset in datasets for i in range(len(dataset)))


def source(
    kept: PairDataset, split: str = "train", name: str = "pairs.jsonl", merges: int = 0, repeats: int = 0, **dropped
):
    return data_report.SourceReport(split, name, len(kept) + sum(dropped.values()), dropped, merges, 0, kept, repeats)


def build(train: PairDataset, evaluation: PairDataset | None = None, *sources: data_report.SourceReport) -> dict:
    given = sources or (source(train), *([source(evaluation, "eval")] if evaluation is not None else []))
    return data_report.build(train, evaluation, given, LIMITS)


def warnings(*args) -> str:
    return "\n".join(build(*args)["warnings"])


def test_good_data_give_no_warning():
    assert warnings(pairs(200), pairs(100, start=1000)) == ""


def test_rows_are_counted_by_split_and_by_source():
    one, two, held = pairs(150), pairs(50, chosen=9, start=500), pairs(100, start=1000)
    report = build(
        joined(one, two), held,
        source(one, tie=3, malformed_json=1), source(two, name="org/other", merges=2, tie=4), source(held, "eval", too_long=5),
    )  # fmt: skip
    train, evaluation = report["splits"]["train"], report["splits"]["eval"]
    assert (train["rows"], train["kept"], train["dropped"]) == (208, 200, {"malformed_json": 1, "tie": 7})
    assert (train["boundary_merges"], train["chosen_longer"], train["same_length"]) == (2, 0.25, 0.75)
    assert (evaluation["rows"], evaluation["dropped"]) == (105, {"too_long": 5})
    first, second, third = report["sources"]
    assert (first["chosen_longer"], second["chosen_longer"]) == (0.0, 1.0)
    assert (second["source"], second["rows"], second["boundary_merges"]) == ("org/other", 54, 2)
    assert third["length"] == evaluation["length"]


def test_held_out_pairs_have_statistics_but_no_row_counts():
    report = build(pairs(150), pairs(100, start=1000), source(pairs(250), tie=1))
    assert "rows" not in report["splits"]["eval"]
    assert (report["splits"]["eval"]["pairs"], report["sources"][0]["pairs"]) == (100, 250)


def test_pairs_repeated_by_a_weight_are_not_duplicates():
    once = pairs(100)
    twice = joined(once, once, pairs(5))
    report = build(twice, None, source(joined(once, pairs(5)), repeats=100))
    assert (report["splits"]["train"]["repeats"], report["splits"]["train"]["duplicate_pairs"]) == (100, 5)
    assert report["warnings"] == []


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (lambda: pairs(99), "train: only 99 pairs"),
        (lambda: joined(pairs(70, chosen=9), pairs(34, start=500)), "longer one in 67% of the pairs"),
        (lambda: joined(pairs(70, chosen=3), pairs(34, start=500)), "shorter one in 67% of the pairs"),
        (lambda: pairs(100, prompt=50, chosen=2, rejected=2), "93% of the tokens are prompt"),
        (lambda: pairs(100, cut=6), "6 of 100 pairs (6%) were cut to data.maxLength 64"),
        (lambda: joined(pairs(100), pairs(6)), "6 of 106 pairs are copies"),
        (lambda: joined(pairs(100), _turned(pairs(3))), "3 of 103 pairs prefer what an earlier pair rejects"),
        (lambda: _nearly_the_same(100), "in 100% of the pairs the answers are nearly the same"),
    ],
)
def test_each_problem_of_a_split_has_its_warning(train, expected):
    assert expected in warnings(train())


@pytest.mark.parametrize(
    "train",
    [
        pairs(100),
        pairs(100, cut=5),
        joined(pairs(65, chosen=9), pairs(35, start=500)),
        pairs(100, chosen=8),  # two tokens longer
        pairs(100, chosen=64, rejected=60),  # four tokens, and little
    ],
)
def test_normal_values_give_no_warning(train):
    assert warnings(train) == ""


def test_warnings_are_findings_with_a_known_code():
    report = build(pairs(99, cut=6))
    found = [Finding.model_validate(finding) for finding in report["findings"]]
    assert [finding.sentence for finding in found] == report["warnings"]
    assert [(f.code, f.severity, f.setting) for f in found] == [
        ("FewTrainingPairs", "Info", "data.train"),
        ("TruncatedPairs", "Warning", "data.maxLength"),
    ]
    assert KINDS.keys() <= WARNINGS.keys()


def test_many_boundary_merges_give_a_warning():
    train = pairs(100)
    assert "in 6 pairs a token would span the end of the prompt" in warnings(train, None, source(train, merges=6))


def test_many_dropped_rows_give_a_warning():
    train = pairs(100)
    assert "27 of 127 rows (21%) were left out, most of them for too_long (20)" in warnings(
        train, None, source(train, tie=7, too_long=20)
    )
    assert warnings(train, None, source(train, tie=5, too_long=20)) == ""


def test_evaluation_pairs_that_are_in_train_give_a_warning():
    train = pairs(200)
    other_answers = PairDataset.from_pairs(
        TokenPair(p.prompt, p.chosen, p.rejected[::-1], 0) for p in map(train.__getitem__, range(7))
    )
    held = joined(pairs(95, start=1000), train.select(range(3)), other_answers)
    assert build(train, held)["overlap"] == {"prompts": 10, "pairs": 3}
    assert "10 of 105 pairs have a prompt that is in train too, 3 of them with the same answers" in warnings(
        train, held
    )


def test_few_evaluation_pairs_give_the_error_of_the_accuracy():
    assert "eval: only 25 pairs, so an accuracy has an error of ±20%" in warnings(pairs(200), pairs(25, start=1000))


def test_unpaired_data_are_described_with_weights_for_kto():
    train = _unpaired(pairs(400), every=5)
    report = build(train)
    assert report["kto_weights"] == {"desirable": 4.0, "undesirable": 1.0}
    assert "set method.desirableWeight 4 and method.undesirableWeight 1" in "\n".join(report["warnings"])
    text = data_report.text(report)
    assert ["one", "answer,", "undesirable", "320"] in [line.split() for line in text.splitlines()]
    assert "length-only baseline" not in text


def test_answers_of_one_kind_only_give_a_warning():
    assert "no example has an undesirable answer" in warnings(_unpaired(pairs(100), every=1))
    assert "no example has a desirable answer" in warnings(_unpaired(pairs(100), every=1000).select(range(1, 100)))
    held = _unpaired(pairs(100, start=500), every=1)
    assert "eval: no example has an undesirable answer; without both there is no eval_reward_margin" in warnings(
        _unpaired(pairs(100), every=2), held
    )


def test_the_text_lists_sources_only_if_there_are_several():
    one, two = pairs(100), pairs(100, start=1000)
    assert "pairs.jsonl" not in data_report.text(build(one, two))
    mixed = data_report.text(build(joined(one, two), None, source(one), source(two, name="s3://bucket/other.jsonl")))
    assert "s3://bucket/other.jsonl  train   100   100" in mixed


def test_rows_without_values_are_left_out_of_the_text():
    text = data_report.text(build(pairs(100)))
    assert "rows read" in text
    assert not any(line.split("  ")[0] in ("truncated", "copies of earlier pairs") for line in text.splitlines())


PLACES = {
    "pairs": lambda: (pairs(120), pairs(100, start=900)),
    "unpaired": lambda: (_unpaired(pairs(120), every=3), None),
    "one pair": lambda: (pairs(1, prompt=1, chosen=1, rejected=1), None),
}


@pytest.mark.parametrize("name", PLACES)
def test_the_same_data_give_the_same_three_files(tmp_path, name):
    train, evaluation = PLACES[name]()
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        many = {f"reason_{i}": i + 1 for i in range(11)}
        sources = (source(train, **many), *([source(evaluation, "eval", reason_1=2)] if evaluation is not None else []))
        report = data_report.build(train, evaluation, sources, LIMITS)
        data_report.write(WorkDir(folder), report, train, evaluation)
        assert sorted(path.name for path in (folder / "data").iterdir()) == ["report.json", "report.png", "report.txt"]
        made.append([(folder / "data" / f"report.{kind}").read_bytes() for kind in ("json", "txt", "png")])
    assert made[0] == made[1]
    document, text, picture = made[0]
    assert json.loads(document) == report
    assert text.decode().endswith("picture: data/report.png\n")
    assert picture.startswith(b"\x89PNG")
    assert (int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")) == (1155, 770)


def test_without_matplotlib_a_line_replaces_the_picture(tmp_path: Path):
    body = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path; from dpo_trainer.data.report import build; from dpo_trainer.runtime.workdir import WorkDir\n"
        "from dpo_trainer.data.dataset import PairDataset; from dpo_trainer.data.tokens.truncation import Limits\n"
        "empty = PairDataset.from_pairs([])\n"
        "report = build.build(empty, None, [], Limits(8, None, 'drop'))\n"
        f"build.write(WorkDir(Path({str(tmp_path)!r})), report, empty, None)"
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "report.png").write_bytes(b"of an earlier run")
    subprocess.run([sys.executable, "-c", body], check=True)
    assert (
        (tmp_path / "data" / "report.txt")
        .read_text()
        .endswith("no picture: matplotlib is not installed (pip install matplotlib)\n")
    )
    assert not (tmp_path / "data" / "report.png").exists()


def _turned(dataset: PairDataset) -> PairDataset:
    found = (dataset[i] for i in range(len(dataset)))
    return PairDataset.from_pairs(TokenPair(pair.prompt, pair.rejected, pair.chosen, pair.row) for pair in found)


def _unpaired(dataset: PairDataset, every: int) -> PairDataset:
    """Every n-th example with its chosen answer alone, the others with their rejected one."""
    none = np.zeros(0, dtype=np.int32)
    found = (dataset[i] for i in range(len(dataset)))
    return PairDataset.from_pairs(
        TokenPair(p.prompt, p.chosen if p.row % every == 0 else none, none if p.row % every == 0 else p.rejected, p.row)
        for p in found
    )


def _nearly_the_same(count: int) -> PairDataset:
    base = np.arange(20, dtype=np.int32)
    return PairDataset.from_pairs(
        TokenPair(base[:3] + 100 * i, base, np.concatenate([base[:19], [1000 + i]]).astype(np.int32), i)
        for i in range(count)
    )
