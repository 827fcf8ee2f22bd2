"""What `status` and `list` show of DPOJobs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from dpo_operator.api import conditions as c
from dpo_operator.api.quantity import duration, hours
from dpo_operator.api.status import DPOJobStatus, ProgressStatus
from dpo_operator.api.text import shown
from dpo_operator.explain.case import status_of, time_of
from dpo_operator.explain.legs import leg_figures
from dpo_operator.explain.rounds import round_figures

Raw = dict[str, Any]
Rows = list[tuple[str, str]]
_BARS = "▁▂▃▄▅▆▇█"
SPARKLINE = 40
BAR = 30
# Longest text from a pod in a table, characters.
MAX_WORDS = 300


@dataclass
class History:
    """Values that were seen while a job was watched; a resumed step replaces what came after it."""

    points: dict[str, dict[int, float]] = field(default_factory=dict)

    def add(self, status: DPOJobStatus) -> None:
        """Note the newest values."""
        progress = status.progress
        if progress is None or status.phase != "train":
            return
        for name, text in (("loss", progress.loss), ("margin", progress.reward_margin)):
            known = {step: value for step, value in self.points.get(name, {}).items() if step < progress.step}
            value = _number(text)
            if value is not None:
                known[progress.step] = value
            self.points[name] = known

    def sparkline(self, name: str) -> str:
        """The values as bars; empty with fewer than two."""
        return sparkline(list(self.points.get(name, {}).values()))


def sparkline(values: Sequence[float], width: int = SPARKLINE) -> str:
    """Bars between the smallest and the largest value, at most `width` of them, each the mean of its share."""
    if len(values) < 2:
        return ""
    shares = [values[len(values) * i // width : len(values) * (i + 1) // width] for i in range(width)]
    means = [sum(share) / len(share) for share in shares if share] if len(values) > width else list(values)
    low, high = min(means), max(means)
    span = high - low or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int((value - low) / span * len(_BARS)))] for value in means)


def columns(rows: Iterable[Sequence[str]], titles: Sequence[str]) -> str:
    """Text in columns, as kubectl prints it. Nothing is cut."""
    table = [list(titles), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(titles))]
    return "\n".join("   ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table)


def listing(jobs: Sequence[Raw], now: datetime, *, namespaces: bool) -> str:
    """One line for each job."""
    titles = ["NAME", "STATE", "STEP", "PROGRESS", "ETA", "LOSS", "MARGIN", "ACCURACY", "HEALTHY", "RESTARTS", "AGE"]
    rows = [_line(job, now) for job in jobs]
    if namespaces:
        titles.insert(0, "NAMESPACE")
        rows = [[shown(str(j["metadata"].get("namespace", "")), 63), *row] for j, row in zip(jobs, rows, strict=True)]
    return columns(rows, titles)


def _line(job: Raw, now: datetime) -> list[str]:
    metadata, status = job["metadata"], status_of(job)
    progress, healthy = status.progress, c.find(status.conditions, c.HEALTHY)
    known = {} if progress is None else progress.model_dump(exclude_none=True)
    values = [known.get(key) for key in ("step", "percent", "eta", "loss", "reward_margin", "accuracy")]
    cells = ["" if value is None else shown(str(value), 64) for value in values]
    return [
        shown(str(metadata["name"]), 63),
        str(status.state or ""),
        *cells,
        healthy.status if healthy is not None else "",
        str(status.restarts),
        age(time_of(metadata.get("creationTimestamp")), now),
    ]


def age(time: datetime | None, now: datetime) -> str:
    """Time since then; empty without one."""
    return "" if time is None else duration((now - time).total_seconds())


def details(job: Raw, now: datetime, history: History | None = None) -> Rows:
    """Everything about one job, as names and values; empty values are left out."""
    status, history = status_of(job), history or History()
    progress, healthy = status.progress, c.find(status.conditions, c.HEALTHY)
    rows: Rows = [
        (
            "job",
            f"{shown(str(job['metadata']['name']), 63)} (namespace {shown(str(job['metadata'].get('namespace', '')), 63)})",
        ),
        ("state", str(status.state or "not looked at by an operator yet")),
        ("message", shown(status.message, MAX_WORDS)),
        ("round", str(status.round or "")),
        *((f"  round {each.round}", round_figures(each)) for each in status.rounds),
        ("leg", str(status.leg or "")),
        *((f"  leg {each.leg}", shown(f"{each.settings}: {leg_figures(each)}", MAX_WORDS)) for each in status.legs),
    ]
    if progress is not None:
        done = f"step {progress.step}" + (f" of {progress.max_steps}" if progress.max_steps else "")
        bar = _bar(progress.step, progress.max_steps)
        rows += [
            ("progress", " ".join(part for part in (bar, done, progress.percent and f"({progress.percent})") if part)),
            ("time left", progress.eta or ""),
            ("at", shown(progress.activity or "", MAX_WORDS)),
            ("units", _units(progress)),
            ("speed", f"{progress.pairs_per_second} pairs/s" if progress.pairs_per_second else ""),
            ("loss", _with_held_out(progress.loss, progress.eval_loss, history.sparkline("loss"))),
            (
                "margin",
                _with_held_out(progress.reward_margin, progress.eval_reward_margin, history.sparkline("margin")),
            ),
            ("accuracy", _with_held_out(progress.accuracy, progress.eval_accuracy, "")),
        ]
    if status.workers.desired:
        rows.append(("pods", f"{status.workers.started} of {status.workers.desired} run"))
    rows.append(("attempt", f"{status.attempt} of {status.phase}" if status.phase else ""))
    rows.append(
        ("restarts", f"{status.restarts}, {status.counted_restarts} of them counted" if status.restarts else "")
    )
    rows.append(("used", _used(status, now)))
    if status.resumed_from is not None:
        rows.append(
            ("began with", f"step {status.resumed_from.step} of {shown(status.resumed_from.source, MAX_WORDS)}")
        )
    if status.checkpoint is not None:
        rows.append(("checkpoint", f"step {status.checkpoint.step}, {age(status.checkpoint.time, now)} ago"))
    if status.straggler is not None:
        rows.append(("slow rank", f"{status.straggler.rank}, {status.straggler.ratio} times the others' time"))
    rows.append(("healthy", "" if healthy is None else " ".join(_health(healthy))))
    rows += [(f"  {finding.severity}", f"{finding.code}: {shown(finding.message, 700)}") for finding in status.findings]
    if status.export is not None:
        where = f" in folder {status.volume.folder} of claim {status.volume.claim_name}" if status.volume else ""
        rows.append(("model", f"{shown(status.export.path, MAX_WORDS)}{where}"))
        rows.append(("pushed to", shown(status.export.pushed.to, MAX_WORDS) if status.export.pushed else ""))
    rows.append(("age", age(time_of(job["metadata"].get("creationTimestamp")), now)))
    return [(name, value) for name, value in rows if value]


def _units(progress: ProgressStatus) -> str:
    """How far answers are generated or judged; empty in other phases."""
    units = progress.units
    if units is None:
        return ""
    known = (
        (f"{_bar(units.done, units.total)} {units.done} of {units.total}".strip(), True),
        (f"{units.answers} answers", units.answers > 0),
        (f"{units.judge_calls} calls", units.judge_calls > 0),
        (f"{units.judge_cached} verdicts known from before", units.judge_cached > 0),
    )
    return ", ".join(text for text, there in known if there)


def _used(status: DPOJobStatus, now: datetime) -> str:
    """GPU time up to now, and tokens; empty where nothing is known."""
    usage, tokens = status.usage, status.progress.tokens if status.progress is not None else None
    parts = []
    if usage is not None:
        running = (now - usage.since).total_seconds() * usage.gpus if usage.since is not None else 0
        parts.append(f"{hours(usage.gpu_seconds + max(0, int(running)))} GPU-hours")
    if tokens is not None:
        parts.append(f"{tokens:,} tokens trained on")
    return ", ".join(parts)


def as_text(rows: Rows) -> str:
    """Names and values, one a line."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def _health(healthy: c.Condition) -> tuple[str, ...]:
    reason = f"({healthy.reason})" if healthy.reason != c.NO_FINDINGS else ""
    return tuple(part for part in (healthy.status, reason) if part)


def _bar(step: int, steps: int) -> str:
    if not steps:
        return ""
    full = min(BAR, BAR * step // steps)
    return "█" * full + "░" * (BAR - full)


def _with_held_out(train: str | None, held_out: str | None, line: str) -> str:
    parts = (shown(train or "", 64), f"held out {shown(held_out, 64)}" if held_out else "", line)
    return "   ".join(part for part in parts if part)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
