"""What the figures of diagnosis and the sampled answers cost: `make bench-diagnosis-cost`.

The same run with the defaults and without diagnosis and samples, in turns, each a process of its own with one thread. Printed is processor
time, which other work on the machine changes little: of the whole train phase, and of what it does after its start, which is
the same run's time less that of one with a single step. Ends with status 1 when the medians differ by more than the promised share.
"""

import argparse
import resource
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.methods import DATASETS, ROWS, add_inputs, document
from benchmarks.runs import Dataset, Failed, prepare, train
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import read_metrics
from dpo_trainer.training.sampling.sampling_time import SHARE
from tests.scratch import scratch_folder

WITHOUT = {"diagnosis": {"enabled": False}}


def job(
    dataset: Dataset, data: dict[str, Any], model: Path, *, diagnosed: bool, steps: int, every: int
) -> dict[str, Any]:
    """A DPO job with the defaults of diagnosis and evaluation, or with both off."""
    made = document(ROWS[0], dataset, data, model)
    made["spec"]["training"] = {**made["spec"]["training"], "maxSteps": steps}
    made["spec"]["evaluation"] = {"everySteps": every} | ({} if diagnosed else {"samples": 0})
    made["spec"] |= {} if diagnosed else WITHOUT
    return made


def processor_seconds(document: dict[str, Any], prepared: WorkDir, work: Path) -> float:
    """Processor time of the train phase with all of its processes. Raises Failed."""
    # Each run computes the reference's log-probs, as a first one does.
    shutil.rmtree(prepared.reference, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    train(document, prepared, work)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(start: float, with_: Sequence[float], without: Sequence[float], sets: int) -> tuple[Table, float]:
    """The table, and how much more the run with diagnosis takes after its start, as a share. start: seconds."""
    made = Table(
        title="Processor seconds of the train phase",
        caption=f"{sets} sets of sampled answers; promised: at most {SHARE:.0%} more",
    )
    for name in ("", "whole phase", "after its start"):
        made.add_column(name, justify="right")
    ours, theirs = statistics.median(with_), statistics.median(without)
    for name, value in (("without", theirs), ("with", ours)):
        made.add_row(name, f"{value:.1f}", f"{value - start:.1f}")
    share = (ours - theirs) / (theirs - start)
    made.add_row("more", f"{(ours - theirs) / theirs:.1%}", f"{share:.1%}")
    return made, share


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when the cost is within the promised share."""
    parser = argparse.ArgumentParser(prog="benchmarks.diagnosis_cost", description=__doc__)
    dataset = DATASETS[0]
    add_inputs(parser, [dataset.name])
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of 16 pairs")
    parser.add_argument("--every", type=int, default=50, help="steps between evaluations")
    parser.add_argument("--times", type=int, default=3, help="runs of each kind")
    given = parser.parse_args(argv)
    out = Console(width=100, highlight=False)
    data = dataset.paired(given.data / dataset.name, None)
    found: dict[bool, list[float]] = {True: [], False: []}
    try:
        with scratch_folder() as folder:
            arguments = {"steps": given.steps, "every": given.every}
            prepared = prepare(job(dataset, data, given.model, diagnosed=True, **arguments), folder / "prepared")
            one = job(dataset, data, given.model, diagnosed=False, steps=1, every=10**6)
            start = processor_seconds(one, prepared, folder / "start")
            for _ in range(given.times):
                for diagnosed in (True, False):
                    made = job(dataset, data, given.model, diagnosed=diagnosed, **arguments)
                    found[diagnosed].append(processor_seconds(made, prepared, folder / f"{diagnosed}"))
            sets = len({line["step"] for line in read_metrics(WorkDir(folder / "True").samples)})
    except Failed as error:
        out.print(str(error), markup=False, style="red")
        return 1
    made_table, share = table(start, found[True], found[False], sets)
    out.print(made_table)
    return int(share > SHARE)


if __name__ == "__main__":
    sys.exit(main())
