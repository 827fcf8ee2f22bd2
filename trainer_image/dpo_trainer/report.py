"""The report of a run: a picture of its curves, and a table of where it began and ended."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_operator.api.reports import Termination
from dpo_trainer.telemetry.console import duration
from dpo_trainer.telemetry.metrics_file import Line, kind, read_metrics
from dpo_trainer.workdir import WorkDir

PICTURE = "report.png"
_TABLE = (
    ("loss", "loss", "{:.4f}"),
    ("rewards/margins", "reward margin", "{:z.4f}"),
    ("rewards/accuracies", "reward accuracy", "{:.1%}"),
    ("rewards/chosen", "reward, chosen", "{:z.4f}"),
    ("rewards/rejected", "reward, rejected", "{:z.4f}"),
)
# A colour-blind-safe pair, and a grey for what only gives scale.
_TRAIN, _EVAL, _QUIET = "#1f5fa8", "#d1495b", "#8a8f98"


@dataclass(frozen=True)
class Run:
    """What is known of a run. restarts: steps after which a later attempt went on."""

    train: list[Line]
    evaluations: list[Line]
    restarts: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """Time in optimizer steps."""
        return sum(line.get("step_seconds") or 0.0 for line in self.train)


def report(work: WorkDir) -> None:
    """Print the table and write the picture. Without matplotlib there is only the table, and a line that says so."""
    run = read_run(work)
    if not run.train:
        print(f"{work.metrics}: no steps yet, so there is nothing to report.", file=sys.stderr)
        return
    _print_table(run, work)
    try:
        path = draw(run, work.report)
    except ImportError:
        print("No picture: matplotlib is not installed (pip install matplotlib).", file=sys.stderr)
    else:
        print(f"picture: {path}")


def read_run(work: WorkDir) -> Run:
    """Collect the metrics, and the restarts from the attempts' last words where they are in the work folder."""
    lines = read_metrics(work.metrics)
    restarts = set()
    for path in work.root.glob("termination-train-*-0.json"):
        words = Termination.from_text(path.read_text(encoding="utf-8"))
        if words and words.progress and words.progress.resumed_from_step:
            restarts.add(words.progress.resumed_from_step)
    by_kind: dict[str, list[Line]] = {"train": [], "eval": []}
    for line in lines:
        by_kind[kind(line)].append(line)
    last = by_kind["train"][-1]["step"] if by_kind["train"] else 0
    # A finished run that is started again resumes at its last step and does nothing more.
    return Run(by_kind["train"], by_kind["eval"], tuple(sorted(step for step in restarts if step < last)))


def draw(run: Run, folder: Path) -> Path:
    """Write report.png; returns its path. Raises ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    style = {
        "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _QUIET,
        "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.grid": True,
        "grid.color": "#e6e8eb", "xtick.color": "#555a62", "ytick.color": "#555a62", "legend.frameon": False,
    }  # fmt: skip
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(2, 2, figsize=(10, 6.4), sharex=True, layout="constrained")
        loss, margin, accuracy, rewards = axes.flat

        loss.set_title("Loss")
        loss.axhline(math.log(2), color=_QUIET, linewidth=0.8, linestyle=":")
        loss.annotate(
            "ln 2", (1, math.log(2)), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=_QUIET
        )
        margin.set_title("Reward margin, nats")
        accuracy.set_title("Reward accuracy")
        accuracy.set_ylim(-0.03, 1.03)
        accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
        for axis, key in ((loss, "loss"), (margin, "rewards/margins"), (accuracy, "rewards/accuracies")):
            _curve(axis, run.train, key, _TRAIN, "train")
            _dots(axis, run.evaluations, "eval_" + key, _EVAL, "held out")

        rewards.set_title("Rewards, nats")
        for key, colour, label in (("rewards/chosen", _TRAIN, "chosen"), ("rewards/rejected", _EVAL, "rejected")):
            _curve(rewards, run.train, key, colour, label)
            _dots(rewards, run.evaluations, "eval_" + key, colour, f"{label}, held out")
        for axis in axes.flat:
            for number, step in enumerate(run.restarts):
                label = "restart" if number == 0 else None
                axis.axvline(step, color=_QUIET, linewidth=1, linestyle="--", label=label)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=8)
        for axis in axes[1]:
            axis.set_xlabel("optimizer step")

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PICTURE
        temporary = folder / f"{PICTURE}.tmp"
        figure.savefig(temporary, format="png", dpi=150)
        pyplot.close(figure)
    temporary.replace(path)
    return path


def _curve(axis: Any, lines: Sequence[Line], key: str, colour: str, label: str) -> None:
    """Every step faintly, and over it a running mean when there are enough steps to need one."""
    points = _points(lines, key)
    if not points:
        return
    steps, values = zip(*points, strict=True)
    window = len(points) // 25
    if window < 2:
        axis.plot(steps, values, color=colour, linewidth=1.6, label=label, marker="o" if len(points) == 1 else None)
        return
    axis.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    axis.plot(steps, _smooth(values, window), color=colour, linewidth=1.8, label=f"{label} (mean of {2 * window + 1})")


def _dots(axis: Any, lines: Sequence[Line], key: str, colour: str, label: str) -> None:
    points = _points(lines, key)
    if points:
        steps, values = zip(*points, strict=True)
        axis.plot(
            steps, values, color=colour, linewidth=1, linestyle=":", marker="o", markersize=4.5,
            markeredgecolor="white", label=label, zorder=3,
        )  # fmt: skip


def _points(lines: Sequence[Line], key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]


def _smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over 2*window+1 values, fewer at the ends."""
    parts = [values[max(0, i - window) : i + window + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _print_table(run: Run, work: WorkDir) -> None:
    from rich.console import Console
    from rich.table import Table

    first, last = run.train[0], run.train[-1]
    columns: list[tuple[str, str, Line]] = [(f"train\nstep {first['step']}", "", first)]
    if last is not first:
        columns.append((f"train\nstep {last['step']}", "", last))
    if run.evaluations:
        begin, end = run.evaluations[0], run.evaluations[-1]
        if len(run.evaluations) > 1:
            columns.append((f"held out\nstep {begin['step']}", "eval_", begin))
        columns.append((f"held out\nstep {end['step']}", "eval_", end))
    table = Table(title="Result", title_justify="left", title_style="bold")
    table.add_column("")
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    for key, name, form in _TABLE:
        values = [line.get(prefix + key) for _, prefix, line in columns]
        table.add_row(name, *(form.format(v) if isinstance(v, int | float) else "–" for v in values))
    console = Console(highlight=False)
    console.print(table)
    for name, text in _facts(run, work):
        console.print(f"{name}: {text}", markup=False, soft_wrap=True)


def _facts(run: Run, work: WorkDir) -> list[tuple[str, str]]:
    facts = [
        ("training time", f"{duration(run.seconds)} in {len(run.train)} logged step{'s' if len(run.train) > 1 else ''}")
    ]
    if run.restarts:
        facts.append(("restarts", f"{len(run.restarts)}, from step {', '.join(map(str, run.restarts))}"))
    # Counted, not steps times globalBatchSize: a last step may have fewer pairs.
    pairs = sum(line.get("pairs") or 0 for line in run.train)
    if run.seconds > 0 and pairs:
        facts[0] = (facts[0][0], f"{facts[0][1]}, {pairs / run.seconds:.3g} pairs/s")
    if work.export.is_dir():
        facts.append(("export", str(work.export)))
    facts.append(("metrics", str(work.metrics)))
    return facts
