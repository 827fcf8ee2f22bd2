"""The picture of a dataset report: lengths, effect of the limits, length difference of the answers, rows left out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from dpo_trainer.data.dataset import PairDataset

Lengths = npt.NDArray[np.int64]

_BLUE, _RED, _GREY, _INK = "#1f5fa8", "#d1495b", "#8a8f98", "#3b4048"
_STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9aa0a8",
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e6e8eb", "xtick.color": "#555a62", "ytick.color": "#555a62",
    "axes.labelcolor": "#555a62", "legend.frameon": False, "legend.fontsize": 8,
}  # fmt: skip
# More reasons than these are summed up, so that the labels stay readable.
_MOST_REASONS = 8


def draw(report: Mapping[str, Any], train: PairDataset, evaluation: PairDataset | None, path: Path) -> None:
    """Write the picture of a report of build.build. The same report gives the same bytes. Raises OSError."""
    splits = {"train": train.lengths} | ({} if evaluation is None else {"eval": evaluation.lengths})
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10.5, 7), dpi=110)
        FigureCanvasAgg(figure)
        (lengths, fit), (gap, dropped) = figure.subplots(2, 2)
        figure.subplots_adjust(left=0.07, right=0.975, top=0.945, bottom=0.075, hspace=0.36, wspace=0.2)
        _lengths(lengths, train.lengths)
        _fit(fit, splits, report)
        if _paired(train.lengths).any():
            _length_difference(gap, train.lengths, report["splits"]["train"])
        else:
            _labels(gap, report["splits"])
        _dropped(dropped, report["splits"])
        temporary = path.with_suffix(".tmp.png")
        figure.savefig(temporary, metadata={"Software": None})
    temporary.replace(path)


def _paired(lengths: Lengths) -> npt.NDArray[np.bool_]:
    return np.asarray((lengths[:, 1:] > 0).all(axis=1), dtype=np.bool_)


def _lengths(axis: Axes, lengths: Lengths) -> None:
    """How long prompts and answers are."""
    paired = _paired(lengths).any()
    names = ("prompt", "chosen", "rejected") if paired else ("prompt", "desirable", "undesirable")
    parts = {name: lengths[lengths[:, i] > 0, i] for i, name in enumerate(names)}
    parts = {name: values for name, values in parts.items() if len(values)}
    edges = _edges(np.concatenate(list(parts.values())) if parts else np.zeros(1))
    axis.set_title("Lengths in train")
    for (name, values), colour in zip(parts.items(), (_GREY, _BLUE, _RED), strict=False):
        shares = np.histogram(values, edges)[0] / len(values)
        axis.stairs(shares, edges, color=colour, fill=name == "prompt", alpha=0.35 if name == "prompt" else 1,
                    linewidth=1.5, label=f"{name}, median {np.median(values):,.0f}")  # fmt: skip
    _shares_of_tokens(axis, edges)
    axis.legend()


def _fit(axis: Axes, splits: Mapping[str, Lengths], report: Mapping[str, Any]) -> None:
    """Prompt and longer answer together, beside the limit."""
    limit = report["limits"]["max_length"]
    whole = {name: part[:, 0] + part[:, 1:].max(axis=1) for name, part in splits.items() if len(part)}
    edges = _edges(np.concatenate(list(whole.values())) if whole else np.zeros(1))
    axis.set_title("Prompt and longer answer")
    for (name, values), colour in zip(whole.items(), (_BLUE, _RED), strict=False):
        facts = report["splits"][name]
        shares = np.histogram(values, edges)[0] / len(values)
        axis.stairs(shares, edges, color=colour, fill=name == "train", alpha=0.45 if name == "train" else 1, linewidth=1.5,
                    label=f"{name}, {facts['truncated'] / max(facts['pairs'], 1):.1%} truncated")  # fmt: skip
    if limit <= edges[-1] * 1.25:
        axis.axvline(limit, color=_INK, linewidth=1, linestyle="--", label=f"maxLength {limit:,}")
    else:
        axis.plot([], [], " ", label=f"maxLength {limit:,} is far to the right")
    _shares_of_tokens(axis, edges, limit if limit <= edges[-1] * 1.25 else 0)
    axis.legend()


def _length_difference(axis: Axes, lengths: Lengths, facts: Mapping[str, Any]) -> None:
    """Which answer is longer, and by how much."""
    both = lengths[_paired(lengths)]
    gap = both[:, 1] - both[:, 2]
    reach = max(float(np.percentile(np.abs(gap), 99)), 4.0)
    # An odd number of bins of an odd number of tokens: zero is in the middle of one.
    width = 2 * int(reach / 50) + 1
    middle = width * np.arange(-int(reach / width + 0.5), int(reach / width + 0.5) + 1)
    shares = np.histogram(gap, np.append(middle, middle[-1] + width) - width / 2)[0] / len(gap)
    colours = np.where(middle == 0, _GREY, np.where(middle > 0, _BLUE, _RED))
    axis.bar(middle, shares, width=width, color=colours, alpha=0.75, linewidth=0)
    axis.set_title("Chosen minus rejected in train")
    axis.axvline(0, color=_INK, linewidth=1)
    axis.set_xlim(middle[0] - width / 2, middle[-1] + width / 2)
    axis.set_xlabel("tokens")
    axis.margins(y=0.12)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _percent(axis)
    for place, side, key, word, colour in (
        (0.02, "left", "chosen_shorter", "shorter", _RED),
        (0.98, "right", "chosen_longer", "longer", _BLUE),
    ):
        axis.text(place, 0.97, f"chosen {word}\n{facts[key]:.1%}", transform=axis.transAxes, ha=side, va="top",
                  color=colour, fontweight="bold")  # fmt: skip
    axis.text(0.98, 0.8, f"as long {facts['same_length']:.1%}\nlength-only baseline {facts['length_baseline']:.1%}",
              transform=axis.transAxes, ha="right", va="top", color="#555a62", fontsize=8)  # fmt: skip


def _labels(axis: Axes, splits: Mapping[str, Any]) -> None:
    """How many answers of each kind, where no example has two."""
    axis.set_title("Desirable and undesirable answers")
    for offset, (key, colour) in zip((-0.2, 0.2), (("desirable", _BLUE), ("undesirable", _RED)), strict=True):
        counts = [facts[key] for facts in splits.values()]
        bars = axis.bar(np.arange(len(splits)) + offset, counts, width=0.36, color=colour, alpha=0.75, label=key)
        axis.bar_label(bars, [f"{count:,}" for count in counts], padding=2, fontsize=8, color=_INK)
    axis.set_xticks(range(len(splits)), list(splits))
    axis.set_xlim(-0.75, len(splits) - 0.25)
    axis.margins(y=0.15)
    axis.grid(False, axis="x")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.legend()


def _dropped(axis: Axes, splits: Mapping[str, Any]) -> None:
    """Rows left out, by reason and split."""
    read = {name: facts for name, facts in splits.items() if "rows" in facts}
    total: dict[str, int] = {}
    for facts in read.values():
        for reason, count in facts["dropped"].items():
            total[reason] = total.get(reason, 0) + count
    rows, lost = sum(facts["rows"] for facts in read.values()), sum(total.values())
    axis.set_title(f"Left out: {lost:,} of {rows:,} rows" + (f" ({lost / rows:.1%})" if lost else ""))
    if not lost:
        axis.text(0.5, 0.5, "every row was used", transform=axis.transAxes, ha="center", va="center", color=_GREY)
        axis.set_axis_off()
        return
    reasons = sorted(total, key=lambda reason: (-total[reason], reason))
    rest = reasons[_MOST_REASONS:]
    labels = [*reasons[:_MOST_REASONS], *([f"{len(rest)} others"] if rest else [])]
    left = np.zeros(len(labels))
    for (name, facts), colour in zip(read.items(), (_BLUE, _RED), strict=False):
        counts = [facts["dropped"].get(reason, 0) for reason in reasons[:_MOST_REASONS]]
        counts += [sum(facts["dropped"].get(reason, 0) for reason in rest)] if rest else []
        axis.barh(range(len(labels)), counts, left=left, color=colour, alpha=0.75, height=0.62, label=name)
        left += counts
    # The names stand behind the bars: before them they would take half of the width.
    axis.set_yticks([])
    for place, (count, label) in enumerate(zip(left, labels, strict=True)):
        axis.annotate(f"{count:,.0f}  {label.replace('_', ' ')}", (count, place), (4, 0), textcoords="offset points",
                      va="center", fontsize=8, color=_INK)  # fmt: skip
    axis.set_ylim(max(len(labels), 4) - 0.4, -0.6)
    axis.set_xlim(0, left.max() * 1.5)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_xlabel("rows")
    if len(read) > 1:
        axis.legend(loc="lower right")


def _edges(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Edges of at most 60 bins, of whole tokens, over all but the longest hundredth, which would hide the rest."""
    top = int(np.percentile(values, 99, method="higher")) + 1
    return np.arange(0, top + (width := max(1, -(-top // 60))), width, dtype=np.float64)


def _shares_of_tokens(axis: Axes, edges: npt.NDArray[np.float64], limit: int = 0) -> None:
    axis.set_xlim(0, max(edges[-1], limit * 1.02))
    axis.set_ylim(0, axis.get_ylim()[1] * 1.25)  # space for the legend
    axis.set_xlabel("tokens")
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _percent(axis)


def _percent(axis: Axes) -> None:
    axis.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if axis.get_ylim()[1] > 0.05 else 1))
