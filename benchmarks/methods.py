"""Every method on small real data, one epoch each, in one table: `make bench-methods`, or `python -m benchmarks.methods`.

benchmarks/README.md has the last table and its discussion.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.runs import Dataset, Failed, prepare, take_apart, train
from dpo_operator.api.method import REFERENCE_FREE
from dpo_trainer.runtime.workdir import WorkDir

REPOSITORY = Path(__file__).resolve().parents[1]

# Settings that all rows share. The model is so small that the field's learning rates for large ones would not move it.
SETTINGS: dict[str, Any] = {
    "training": {
        "epochs": 1.0, "globalBatchSize": 16, "microBatchSize": 8, "precision": "fp32", "gradientCheckpointing": False,
        "device": "cpu",
    },
    "evaluation": {"everySteps": 1_000_000, "samples": 0},  # the last step is evaluated whatever this says
    "checkpoint": {"everySteps": 1_000_000, "keepLast": 1, "keepBest": 0},
    "nodes": 1,
    "gpusPerNode": 0,
}  # fmt: skip

# One rule for all methods: each data set has one learning rate, of which adapters take ten times as much, as usual. Only the
# methods without a reference have a rate of their own: they start from whatever the untrained model prefers, and first have
# to unlearn it. benchmarks/README.md lists what was tried.
DATASETS = (
    Dataset("polite_rude", ".", eval_fraction=0.2, max_length=256, learning_rate=1e-3),
    Dataset("hh_helpful_base", "train.jsonl", evaluation="test.jsonl", max_length=192, learning_rate=3e-5),
)
REFERENCE_FREE_RATE = 1e-3
ADAPTER_FACTOR = 10
LORA = {"type": "lora", "rank": 8, "alpha": 16, "targetModules": ["all-linear"]}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    method, adapter: as in a DPOJob. unpaired: train on the answers one by one, each with its label; evaluate on pairs.
    """

    name: str
    method: dict[str, Any]
    adapter: dict[str, Any] = field(default_factory=dict)
    unpaired: bool = False

    def learning_rate(self, dataset: Dataset) -> float:
        """Peak rate on a data set."""
        if self.method["name"] in REFERENCE_FREE:
            return REFERENCE_FREE_RATE
        return dataset.learning_rate * (ADAPTER_FACTOR if self.adapter else 1)


ROWS = (
    Row("dpo", {"name": "dpo"}),
    Row("dpo-smoothed", {"name": "dpo", "labelSmoothing": 0.1}),
    Row("dpo-robust", {"name": "dpo", "labelSmoothing": 0.1, "robust": True}),
    Row("dpo-nll", {"name": "dpo", "nllWeight": 1.0}),
    Row("ld-dpo", {"name": "ld-dpo"}),
    Row("ln-dpo", {"name": "ln-dpo"}),
    Row("ipo", {"name": "ipo"}),
    Row("hinge", {"name": "hinge"}),
    Row("kto", {"name": "kto"}),
    Row("kto-unpaired", {"name": "kto"}, unpaired=True),
    Row("orpo", {"name": "orpo"}),
    Row("orpo-no-nll", {"name": "orpo", "nllWeight": 0.0}),
    Row("simpo", {"name": "simpo"}),
    Row("reward-model", {"name": "reward-model"}),
    Row("dpo+ipo", {"name": "dpo", "plus": [{"name": "ipo", "weight": 0.1}]}),
    Row("dpo-lora", {"name": "dpo"}, adapter=LORA),
)


def verdict(accuracy: float, baseline: float, error: float) -> str:
    """How an accuracy compares with chance and with the better of the two rules that only look at length.

    error: its standard error; a lead of less than two of them may be luck.
    """
    if accuracy <= 0.5:
        return "not above chance"
    if accuracy <= baseline:
        return "above chance, not length"
    return "above both" if accuracy - max(0.5, baseline) >= 2 * error else "above both, by < 2 s.e."


def document(row: Row, dataset: Dataset, data: dict[str, Any], model: Path) -> dict[str, Any]:
    """The DPOJob of a row. data: spec.data."""
    training = SETTINGS["training"]
    # A step has the same number of answers, whether they come in pairs or one by one.
    sizes = {size: training[size] * (2 if row.unpaired else 1) for size in ("globalBatchSize", "microBatchSize")}
    spec = SETTINGS | {
        "model": {"name": str(model)},
        "data": data,
        "method": row.method,
        "training": training | sizes | {"learningRate": row.learning_rate(dataset)},
    }
    return {
        "metadata": {"name": row.name.replace("+", "-")},
        "spec": spec | ({"adapter": row.adapter} if row.adapter else {}),
    }


def run(
    row: Row, dataset: Dataset, job: dict[str, Any], prepared: WorkDir, work: Path, console: Console
) -> dict[str, Any]:
    """Train one row and return its result. A failure also becomes a row of the table."""
    found: dict[str, Any] = {"data": dataset.name, "method": row.name, "learning_rate": row.learning_rate(dataset)}
    try:
        metrics = train(job, prepared, work)
    except Failed as error:
        console.print(f"{dataset.name} {row.name}: {error}", markup=False, style="red")
        return found | {"verdict": "failed"}
    console.print(f"{dataset.name} {row.name}: accuracy {metrics.accuracy:.3f}", markup=False)
    # An unpaired row's example is one answer, half a pair.
    speed = metrics.pairs_per_second / (2 if row.unpaired else 1)
    judgement = verdict(metrics.accuracy, metrics.baseline, metrics.error)
    return found | asdict(replace(metrics, pairs_per_second=speed)) | {"verdict": judgement}


def run_all(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """All lines that were asked for, in the table's order. Raises Failed when data can't be prepared."""
    rows = [row for row in ROWS if row.name in arguments.methods]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        running = []
        for dataset in (d for d in DATASETS if d.name in arguments.datasets):
            source, work = arguments.data / dataset.name, arguments.work_dir / dataset.name
            data = {False: dataset.paired(source, arguments.limit)}
            prepared = {False: prepare(document(ROWS[0], dataset, data[False], arguments.model), work / "pairs")}
            if unpaired := next((row for row in rows if row.unpaired), None):
                take_apart(dataset, source, prepared[False], work / "apart")
                data[True] = dataset.unpaired(work / "apart")
                prepared[True] = prepare(document(unpaired, dataset, data[True], arguments.model), work / "unpaired")
            for row in rows:
                job = document(row, dataset, data[row.unpaired], arguments.model)
                running.append(pool.submit(run, row, dataset, job, prepared[row.unpaired], work / row.name, console))
        return [line.result() for line in running]


def table(lines: Sequence[dict[str, Any]]) -> Table:
    """The lines for people. Losses of different methods are not comparable; the accuracies are."""
    made = Table(
        title="One epoch of every method", caption="± one standard error; pairs/s while other runs share the machine"
    )
    names = (
        "data",
        "method",
        "lr",
        "steps",
        "pairs/s",
        "first loss",
        "eval loss",
        "accuracy",
        "length alone",
        "margin",
        "verdict",
    )
    for name in names:
        made.add_column(name, justify="left" if name in ("data", "method", "verdict") else "right", no_wrap=True)
    for line in lines:
        start = (line["data"], line["method"], f"{line['learning_rate']:.0e}")
        if "accuracy" not in line:
            made.add_row(*start, *[""] * 7, line["verdict"])
            continue
        made.add_row(
            *start,
            str(line["steps"]),
            f"{line['pairs_per_second']:.0f}",
            f"{line['first_loss']:.3f}",
            f"{line['eval_loss']:.3f}",
            f"{line['accuracy']:.3f} ± {line['error']:.3f}",
            f"{line['baseline']:.3f}",
            f"{line['margin']:.3f}",
            line["verdict"],
        )
    return made


def add_inputs(parser: argparse.ArgumentParser, datasets: Sequence[str]) -> None:
    """Flags that name the data and the model; without them both are looked for in a folder beside the checkout."""
    shared = Path(os.environ.get("DPO_SHARED", REPOSITORY.parent / "shared"))
    parser.add_argument(
        "--data", type=Path, default=shared / "data", help=f"folder that holds {' and '.join(datasets)}"
    )
    parser.add_argument("--model", type=Path, default=shared / "models" / "stories260K", help="Hugging Face folder")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line. Ends with status 2 and a sentence when model or data are not there."""
    parser = argparse.ArgumentParser(prog="benchmarks.methods", description=__doc__)
    datasets, methods = [d.name for d in DATASETS], [row.name for row in ROWS]
    add_inputs(parser, datasets)
    parser.add_argument("--datasets", nargs="+", choices=datasets, default=datasets)
    parser.add_argument(
        "--methods", nargs="+", choices=methods, default=methods, metavar="METHOD", help=", ".join(methods)
    )
    parser.add_argument("--limit", type=int, help="only the first rows of the training data, for a quick look")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="runs at a time, one core each (default: all cores)"
    )
    parser.add_argument("--work-dir", type=Path, default=REPOSITORY / "runs" / "bench-methods")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    given = parser.parse_args(argv)
    missing = [
        path
        for path in (given.model / "config.json", *(given.data / name for name in given.datasets))
        if not path.exists()
    ]
    if missing:
        parser.error(
            f"expected a model and preference data, found no {missing[0]}; name the folders with --model and --data, or the folder "
            "that holds models/ and data/ with DPO_SHARED"
        )
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when every run finished, whatever it learnt."""
    arguments, progress = parse(argv), Console(stderr=True, highlight=False)
    try:
        lines = run_all(arguments, progress)
    except Failed as error:
        progress.print(str(error), markup=False, style="red")
        return 1
    if arguments.json:
        print(json.dumps(lines, indent=1))
    else:
        out = Console(highlight=False)
        # A file or a pipe has no width to fit into.
        (out if out.is_terminal else Console(width=160, highlight=False)).print(table(lines))
    return int(any(line["verdict"] == "failed" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
