"""The picture of a run: its curves, where it was restarted, where it was best and where it stopped."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpo_trainer.commands.run_log import Run, points_of
from dpo_trainer.telemetry.metrics_file import Line

PICTURE = "report.png"
# A colour-blind-safe pair, a third one for what is best, and a grey for what only gives scale.
_TRAIN, _EVAL, _BEST, _QUIET = "#1f5fa8", "#d1495b", "#2b9348", "#8a8f98"


def draw(run: Run, folder: Path) -> Path:
    """Write report.png; returns its path. Raises ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    style = {
        "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _QUIET,
        "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.grid": True,
        "grid.color": "#e6e8eb", "xtick.color": "#555a62", "ytick.color": "#555a62", "legend.frameon": False,
    }  # fmt: skip
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(3, 2, figsize=(10, 9.2), sharex=True, layout="constrained")
        loss, margin, accuracy, rewards, drift, length = axes.flat
        _loss(loss, run)
        _split(margin, run, "rewards/margins", "Reward margin")
        _accuracy(accuracy, run)
        _responses(rewards, run, "rewards", "Rewards")
        if any("logratio_per_token/chosen" in line for line in run.train):
            _responses(drift, run, "logratio_per_token", "Drift: log-ratio to the reference, nats per token")
        else:
            _responses(drift, run, "logps", "Log-probability of answers, nats")
        _lengths(length, run)
        for axis in axes.flat:
            _marks(axis, run, named=axis is loss)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=8)
        for axis in axes[-1]:
            axis.set_xlabel("optimizer step")

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PICTURE
        temporary = folder / f"{PICTURE}.tmp"
        figure.savefig(temporary, format="png", dpi=150)
        pyplot.close(figure)
    temporary.replace(path)
    return path


def _loss(axis: Any, run: Run) -> None:
    _split(axis, run, "loss", "Loss")
    if run.start is not None:
        name = "ln 2" if math.isclose(run.start, math.log(2), abs_tol=1e-4) else f"start {run.start:.3g}"
        axis.axhline(run.start, color=_QUIET, linewidth=0.8, linestyle=":")
        axis.annotate(name, (1.01, run.start), xycoords=("axes fraction", "data"), va="center", color=_QUIET)


def _accuracy(axis: Any, run: Run) -> None:
    from matplotlib.ticker import PercentFormatter

    _split(axis, run, "rewards/accuracies", "Reward accuracy")
    axis.set_ylim(-0.03, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    if baseline := points_of(run.evaluations, "eval_length_baseline_accuracy"):
        axis.axhline(baseline[-1][1], color=_QUIET, linewidth=0.8, linestyle=":", label="by length alone")


def _lengths(axis: Any, run: Run) -> None:
    axis.set_title("Tokens of answers")
    for key, colour, label in (("reference", _QUIET, "sampled, reference"), ("policy", _TRAIN, "sampled, policy")):
        _dots(axis, run.evaluations, f"eval_generation_tokens/{key}", colour, label)
    for key, colour in (("chosen", _BEST), ("rejected", _EVAL)):
        if points := points_of(run.train, f"response_tokens/{key}"):
            mean = sum(value for _, value in points) / len(points)
            axis.axhline(mean, color=colour, linewidth=1, linestyle="--", label=f"data, {key}")
    axis.set_ylim(bottom=0)


def _split(axis: Any, run: Run, key: str, title: str) -> None:
    """A metric of training and of evaluations."""
    axis.set_title(title)
    _curve(axis, run.train, key, _TRAIN, "train")
    _dots(axis, run.evaluations, "eval_" + key, _EVAL, "held out")


def _responses(axis: Any, run: Run, key: str, title: str) -> None:
    """A metric of chosen and of rejected answers."""
    axis.set_title(title)
    for name, colour in (("chosen", _TRAIN), ("rejected", _EVAL)):
        _curve(axis, run.train, f"{key}/{name}", colour, name)
        _dots(axis, run.evaluations, f"eval_{key}/{name}", colour, f"{name}, held out")


def _marks(axis: Any, run: Run, *, named: bool) -> None:
    """Restarts, the best evaluation and an early stop, on every axis; named: in the legend, on one of them."""
    marks = [(step, _QUIET, "--", "restart") for step in run.restarts]
    if run.best is not None:
        marks.append((run.best.step, _BEST, "-", f"best {run.best.metric}, step {run.best.step}"))
    if run.early:
        marks.append((run.train[-1]["step"], _EVAL, "-.", f"stopped early, step {run.train[-1]['step']}"))
    seen = set()
    for step, colour, style, label in marks:
        shown = label if named and label not in seen else None
        seen.add(label)
        axis.axvline(step, color=colour, linewidth=1, linestyle=style, alpha=0.8, label=shown, zorder=1.8)


def _curve(axis: Any, lines: Sequence[Line], key: str, colour: str, label: str) -> None:
    """Every step faintly, and over it a running mean when there are enough steps to need one."""
    points = points_of(lines, key)
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
    points = points_of(lines, key)
    if points:
        steps, values = zip(*points, strict=True)
        axis.plot(
            steps, values, color=colour, linewidth=1, linestyle=":", marker="o", markersize=4.5,
            markeredgecolor="white", label=label, zorder=3,
        )  # fmt: skip


def _smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over 2*window+1 values, fewer at the ends."""
    parts = [values[max(0, i - window) : i + window + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]
