"""The benchmark of the methods: its jobs, its verdicts, what it writes and what it reads."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.methods import DATASETS, ROWS, document, parse, table, verdict
from benchmarks.runs import Dataset, run_metrics, take_apart
from dpo_operator.api.method import MethodName
from dpo_operator.api.rules import spec as rules
from dpo_operator.api.rules import support
from dpo_operator.api.types import DPOJob
from dpo_trainer.runtime.workdir import WorkDir

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)
def test_every_row_is_a_job_that_the_product_accepts(row, dataset, tmp_path: Path):
    data = dataset.unpaired(tmp_path) if row.unpaired else dataset.paired(tmp_path, limit=None)
    job = DPOJob.model_validate(document(row, dataset, data, tmp_path))
    assert rules.violations(job) + support.unsupported(job.spec) == []


def test_every_method_of_the_api_has_a_row():
    assert {row.method["name"] for row in ROWS} == {name.value for name in MethodName}


def test_learning_rates_depend_on_the_adapter_and_on_the_reference():
    """Adapters get ten times the rate; methods without a reference have rates of their own."""
    hh = next(dataset for dataset in DATASETS if dataset.name == "hh_helpful_base")
    rates = {row.name: row.learning_rate(hh) for row in ROWS}
    assert rates["dpo-lora"] == pytest.approx(10 * rates["dpo"])
    assert rates["simpo"] == rates["orpo"] == 1e-3 > rates["dpo"] == rates["kto"] == rates["dpo+ipo"]


@pytest.mark.parametrize(
    ("accuracy", "baseline", "error", "expected"),
    [
        (0.50, 0.55, 0.03, "not above chance"),
        (0.55, 0.60, 0.03, "above chance, not length"),
        (0.62, 0.60, 0.03, "above both, by < 2 s.e."),
        (0.80, 0.60, 0.03, "above both"),
    ],
)
def test_a_verdict_compares_with_chance_length_and_luck(accuracy, baseline, error, expected):
    assert verdict(accuracy, baseline, error) == expected


def test_metrics_come_from_the_steps_and_the_last_evaluation():
    """Metrics of the first step, of all steps, and of the last evaluation."""
    steps = [
        {"step": step, "loss": loss, "pairs": pairs, "step_seconds": 2.0}
        for step, loss, pairs in ((1, 0.7, 16), (2, 0.6, 4))
    ]
    last = {
        "step": 2, "eval_loss": 0.5, "eval_rewards/accuracies": 0.8, "eval_length_baseline_accuracy": 0.6,
        "eval_rewards/margins": 1.5,
    }  # fmt: skip
    found = run_metrics([*steps, last], eval_pairs=100)
    assert (found.steps, found.first_loss, found.eval_loss, found.accuracy) == (2, 0.7, 0.5, 0.8)
    assert found.pairs_per_second == 5  # 20 pairs in 4 s
    assert found.error == pytest.approx(0.04)  # sqrt(0.8 · 0.2 / 100)


def test_pairs_are_taken_apart_as_prepare_split_them(tmp_path: Path):
    source, work = tmp_path / "toy", WorkDir(tmp_path / "work")
    source.mkdir()
    texts = [{"instruction": f"ask {n}", "input": "", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(3)]
    (source / "pairs.json").write_text(json.dumps(texts))
    for folder, rows in ((work.train_data, [2, 0]), (work.eval_data, [1])):
        folder.mkdir(parents=True)
        np.save(folder / "rows.npy", np.array(rows))
    take_apart(Dataset("toy", ".", learning_rate=1e-3, eval_fraction=0.3), source, work, tmp_path / "apart")

    train, evaluation = (
        [json.loads(line) for line in (tmp_path / "apart" / name).read_text().splitlines()]
        for name in ("train.jsonl", "eval.jsonl")
    )
    assert [(row["prompt"], row["completion"], row["label"]) for row in train] == [
        ("ask 0\n\n", "yes 0", True), ("ask 0\n\n", "no 0", False), ("ask 2\n\n", "yes 2", True), ("ask 2\n\n", "no 2", False),
    ]  # fmt: skip
    assert evaluation == [{"prompt": "ask 1\n\n", "chosen": "yes 1", "rejected": "no 1"}]


def test_missing_inputs_are_named_with_the_flags_that_name_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        parse(["--model", str(tmp_path / "nowhere"), "--data", str(tmp_path)])
    assert stopped.value.code == 2
    assert f"found no {tmp_path}/nowhere/config.json; name the folders with --model and --data" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_failed_run_is_a_line_of_the_table():
    made = table([{"data": "toy", "method": "dpo", "learning_rate": 1e-3, "verdict": "failed"}])
    assert made.row_count == 1
    assert list(made.columns[-1].cells) == ["failed"]
