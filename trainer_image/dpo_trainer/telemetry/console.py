"""Console output: a progress bar on a terminal, one line for each logged step elsewhere."""

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TextIO

from dpo_operator.api.reports import Progress
from dpo_trainer.telemetry.margins import note

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Console(Protocol):
    """Where lines and steps are shown."""

    def line(self, text: str) -> None:
        """Show one line."""

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Show a logged step; metrics has TRL's keys."""

    def close(self) -> None:
        """End a bar, if there is one."""


def console(stream: TextIO | None = None) -> Console:
    """A bar when the stream (default: stderr) is a terminal, else lines."""
    stream = sys.stderr if stream is None else stream
    return _Bar(stream) if stream.isatty() else _Lines(stream)


def step_line(progress: Progress, metrics: Mapping[str, float]) -> str:
    """One line about a step: `step 12/250 loss 0.6312 margin 0.13 acc 0.75 lr 4.1e-07 1.8 pairs/s eta 3m10s`."""
    return " ".join([f"step {progress.step}/{progress.max_steps}", *_parts(progress, metrics, rate=True)])


def duration(seconds: float) -> str:
    """Seconds for reading: 8s, 3m10s, 2h05m, 3d04h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def format_metric(form: str, value: float) -> str:
    """A metric with its name; a dash where there is no value, as the margin of a step without any rejected answer."""
    return form.format(value) if math.isfinite(value) else f"{form.partition(' ')[0]} –"


def learning_parts(metrics: Mapping[str, float]) -> list[str]:
    """Loss, margin and accuracy, which has a note where the margin is within noise or near 0. metrics has TRL's keys."""
    forms = (("loss", "loss {:.4f}"), ("rewards/margins", "margin {:.3g}"), ("rewards/accuracies", "acc {:.2f}"))
    parts = [format_metric(form, metrics[key]) for key, form in forms if key in metrics]
    if "rewards/accuracies" in metrics and (why := note(metrics)):
        parts.append(f"({why})")
    return parts


def _parts(progress: Progress, metrics: Mapping[str, float], *, rate: bool) -> list[str]:
    parts = learning_parts(metrics)
    for key, form in (("grad_norm", "grad {:.3g}"), ("learning_rate", "lr {:.1e}")):
        if rate and key in metrics:
            parts.append(format_metric(form, metrics[key]))
    if progress.pairs_per_second is not None:
        parts.append(f"{progress.pairs_per_second:.2g} pairs/s")
    if progress.eta_seconds is not None:
        parts.append(f"eta {duration(progress.eta_seconds)}")
    return parts


class Silent:
    """Shows nothing: the console of ranks other than 0."""

    def line(self, text: str) -> None:
        """Show nothing."""

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Show nothing."""

    def close(self) -> None:
        """There is nothing to close."""


class _Lines:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        self.line(step_line(progress, metrics))

    def close(self) -> None:
        pass


class _Bar:
    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console as RichConsole

        self._console = RichConsole(file=stream)
        self._bar: Bar | None = None

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        if self._bar is None:
            self._bar = Bar(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:.0f}%"),
                TextColumn("{task.fields[words]}"),
                console=self._console,
                expand=True,
            )
            self._bar.start()
            self._bar.add_task("train", total=progress.max_steps, words="")
        words = "  ".join(_parts(progress, metrics, rate=False))
        self._bar.update(self._bar.task_ids[0], completed=progress.step, total=progress.max_steps, words=words)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
