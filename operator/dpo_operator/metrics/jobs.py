"""Prometheus metrics of the operator.

Series of jobs are made from memory when they are scraped, so that the series of a deleted job vanish with it. The text of a job's
series is kept until the job changes: most of thousands of jobs do not between two scrapes.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dpo_operator.api.diagnosis import label
from dpo_operator.api.status import DPOJobStatus, Restart, State
from dpo_operator.metrics import legs, rounds
from dpo_operator.metrics.process import ProcessMetrics
from dpo_operator.metrics.usage import usage_families
from dpo_operator.planning.failures import REASONS
from dpo_operator.queueing.key import Key

LABELS = ("namespace", "dpojob")
# The chart's PodMonitors allow 640.
MAX_LABEL_BYTES = 600


class Shown(NamedTuple):
    """What the series of one job are made from."""

    spec: dict[str, Any]
    status: DPOJobStatus
    restarts: dict[str, int]


# The series of one job, by family.
Text = tuple[str, ...]


@dataclass
class JobRecord:
    """What is exported of one job.

    shows: the status that its series are made from; of a job that has ended only their text, which changes no more.
    rendered: the newest text, and the status that it was made from.
    """

    created: str
    spec: dict[str, Any] = field(default_factory=dict)
    shows: DPOJobStatus | Text = ()
    restarts: dict[str, int] = field(default_factory=dict)
    last_restart: Restart | None = None
    rendered: tuple[DPOJobStatus, Text] | None = None

    def render(self, key: Key) -> Text:
        """The text of its series. Called by another thread than the one that updates, so shows is read once."""
        shows, rendered = self.shows, self.rendered
        if isinstance(shows, tuple):
            return shows
        if rendered is None or rendered[0] is not shows:
            rendered = self.rendered = shows, self._text(key, shows)
        return rendered[1]

    def end(self, key: Key, status: DPOJobStatus) -> None:
        """The job has ended with this status, of which only the text is kept."""
        self.shows, self.rendered = self._text(key, status), None

    def _text(self, key: Key, status: DPOJobStatus) -> Text:
        return _samples([((key.namespace, key.name), Shown(self.spec, status, self.restarts))])


class JobMetrics:
    """All metrics of the operator. registry: those that are not of one job."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._jobs: dict[Key, JobRecord] = {}
        self._seconds = Histogram(
            "dpojob_operator_handler_seconds",
            "Time that the operator worked on a job.",
            ("handler", "outcome"),
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self._errors = Counter(
            "dpojob_operator_handler_errors", "Errors of the operator.", ("handler", "error"), registry=self.registry
        )
        self._restarts = Counter(
            "dpojob_operator_job_restarts",
            "Restarts of all jobs after a failure, since the operator process started; without planned ones (Resized).",
            ("reason",),
            registry=self.registry,
        )
        # Initialized at 0, because increase() ignores the first sample of a series.
        for reason in sorted(REASONS):
            self._restarts.labels(reason)
        self.unobserved = Gauge(
            "dpojob_operator_unobserved_objects",
            "DPOJobs that a LIST shows in a version that the watch has not delivered.",
            registry=self.registry,
        )
        build = Gauge("dpojob_operator_build_info", "Version of the operator.", ("version",), registry=self.registry)
        build.labels(_version()).set(1)
        for outcome in ("success", "error"):
            self._seconds.labels("reconcile", outcome)
        self.process = ProcessMetrics(self.registry)
        self._heads = _heads()

    @contextmanager
    def timed(self, handler: str) -> Iterator[None]:
        """Time a piece of work, and count its error when it raises one."""
        begun = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._seconds.labels(handler, "error").observe(time.perf_counter() - begun)
            self._errors.labels(handler, type(error).__name__).inc()
            raise
        self._seconds.labels(handler, "success").observe(time.perf_counter() - begun)

    def update(self, key: Key, raw: dict[str, Any], status: DPOJobStatus) -> None:
        """Remember a job as it is now."""
        record = self._jobs.get(key)
        created = raw["metadata"].get("creationTimestamp") or ""
        is_new = record is None or record.created != created
        if record is None or is_new:
            record = JobRecord(created)
        # Only what is exported: specs may be large, and records live as long as their jobs. A slim object has no spec any more.
        before = record.spec
        if spec := raw.get("spec"):
            record.spec = {part: {"name": (spec.get(part) or {}).get("name", "")} for part in ("model", "method")}
            record.spec["adapter"] = {"type": (spec.get("adapter") or {}).get("type", "")}
        for restart in _newer(status.restart_history, record.last_restart):
            record.restarts[restart.reason] = record.restarts.get(restart.reason, 0) + 1
            record.last_restart = restart
            if not is_new and restart.reason in REASONS:
                self._restarts.labels(restart.reason).inc()
        # The status comes last: whoever renders meanwhile does so again.
        if status.is_final:
            record.end(key, status)
        elif record.shows != status or record.spec != before:
            # Another object, which tells that the text is old.
            record.shows = status.model_copy()
        self._jobs[key] = record

    def forget(self, key: Key) -> None:
        """A job is gone, and so are its series."""
        self._jobs.pop(key, None)

    def render(self) -> bytes:
        """All series in Prometheus' text format."""
        jobs = [record.render(key) for key, record in self._jobs.copy().items()]
        families = ((head, *(text[i] for text in jobs)) for i, head in enumerate(self._heads))
        return generate_latest(self.registry) + "".join(part for family in families for part in family).encode()


class JobFamilies(Collector):
    """The families of jobs' series."""

    def __init__(self, jobs: "Jobs") -> None:
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        """With the series of these jobs."""
        jobs = self._jobs
        yield _family("dpojob_info", "Settings of a job.", ("model", "method", "adapter"), _infos(jobs))
        yield _family("dpojob_status_state", "1 for the state that a job is in.", ("state",), _states(jobs))
        yield _family(
            "dpojob_status_condition",
            "1 for the status that a condition has.",
            ("condition", "status"),
            _conditions(jobs),
        )
        yield _family(
            "dpojob_workers",
            "Pods of the current phase: desired, and started (the trainer runs or has ended).",
            ("state",),
            _workers(jobs),
        )
        for name, text, attribute in (
            ("dpojob_volume_capacity_bytes", "Size of the file system that a job's files are on.", "capacity_bytes"),
            ("dpojob_volume_free_bytes", "Room that is left on it, as of the last change by 5%.", "free_bytes"),
        ):
            yield _family(name, text, (), _volumes(jobs, attribute))
        yield _family("dpojob_progress_ratio", "Share of the optimizer steps that are finished.", (), _progress(jobs))
        for name, text, attribute in (
            ("dpojob_start_timestamp_seconds", "When a job was accepted.", "start_time"),
            ("dpojob_completion_timestamp_seconds", "When a job completed or failed.", "completion_time"),
        ):
            rows = [(labels, getattr(r.status, attribute)) for labels, r in jobs]
            yield _family(name, text, (), [(labels, at.timestamp()) for labels, at in rows if at is not None])
        for name, attribute in (
            ("dpojob_final_loss", "loss"),
            ("dpojob_final_reward_margin", "reward_margin"),
            ("dpojob_final_reward_accuracy_ratio", "reward_accuracy"),
        ):
            yield _family(name, "Value at the end of training.", (), _finals(jobs, attribute))
        yield from usage_families(LABELS, [(labels, shown.status) for labels, shown in jobs])
        text = "A rank that is much slower than the others now: how many times as long it takes for the same work."
        yield _family("dpojob_straggler_ratio", text, ("rank",), _stragglers(jobs))
        text = "1 for a finding about a job's learning or its data that holds now; codes that the operator does not know are Other."
        yield _family("dpojob_finding", text, ("code", "severity"), _findings(jobs))
        text = "The sentence of each such finding, for people: the text of alerts and annotations."
        yield _family("dpojob_finding_info", text, ("code", "severity", "message"), _sentences(jobs))
        statuses = [(labels, r.status) for labels, r in jobs]
        for family in (*rounds.families(statuses), *legs.families(statuses)):
            yield _family(*family)
        restarts = CounterMetricFamily(
            "dpojob_restarts", "Restarts of a job since the operator knows it.", labels=(*LABELS, "reason")
        )
        for labels, record in jobs:
            for reason, count in record.restarts.items():
                restarts.add_metric((*labels, reason), count)
        yield restarts


Rows = list[tuple[tuple[str, ...], float]]
Jobs = list[tuple[tuple[str, str], Shown]]


def _sections(jobs: Jobs) -> list[tuple[str, str]]:
    """Head and series of each family, as text."""
    text = "\n" + generate_latest(JobFamilies(jobs)).decode()
    # No value of a label has a line break.
    parts = [section.rstrip("\n").split("\n", 2) for section in text.split("\n# HELP ")[1:]]
    return [
        (f"# HELP {help_}\n{type_}\n", "".join(f"{part}\n" for part in samples)) for help_, type_, *samples in parts
    ]


def _heads() -> Text:
    return tuple(head for head, _ in _sections([]))


def _samples(jobs: Jobs) -> Text:
    return tuple(samples for _, samples in _sections(jobs))


def _family(name: str, text: str, labels: tuple[str, ...], rows: Any) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(*LABELS, *labels))
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _infos(jobs: Jobs) -> Rows:
    return [
        (
            (
                *labels,
                str((r.spec.get("model") or {}).get("name", "")),
                str((r.spec.get("method") or {}).get("name", "")),
                str((r.spec.get("adapter") or {}).get("type", "")),
            ),
            1,
        )
        for labels, r in jobs
    ]


def _states(jobs: Jobs) -> Rows:
    return [((*labels, state.value), float(r.status.state is state)) for labels, r in jobs for state in State]


def _conditions(jobs: Jobs) -> Rows:
    return [
        ((*labels, c.type, value), float(c.status == value))
        for labels, r in jobs
        for c in r.status.conditions
        for value in ("True", "False")
    ]


def _workers(jobs: Jobs) -> Rows:
    return [
        ((*labels, state), float(getattr(r.status.workers, state)))
        for labels, r in jobs
        for state in ("desired", "started")
    ]


def _progress(jobs: Jobs) -> Rows:
    found = [(labels, r.status.progress) for labels, r in jobs]
    return [(labels, p.step / p.max_steps) for labels, p in found if p is not None and p.max_steps > 0]


def _stragglers(jobs: Jobs) -> Rows:
    found = [(labels, r.status.straggler) for labels, r in jobs]
    return [((*labels, str(slow.rank)), float(slow.ratio)) for labels, slow in found if slow is not None]


def _findings(jobs: Jobs) -> Rows:
    # Two findings may have one label.
    found = {(*labels, label(f.code), f.severity): None for labels, r in jobs for f in r.status.findings}
    return [(values, 1) for values in found]


def _sentences(jobs: Jobs) -> Rows:
    found = {
        (*labels, label(f.code), f.severity, _cut(f.message)): None for labels, r in jobs for f in r.status.findings
    }
    return [(values, 1) for values in found]


def _cut(text: str) -> str:
    """Prometheus counts bytes, and drops a whole scrape for one value that is longer than the PodMonitor allows."""
    return text.encode()[:MAX_LABEL_BYTES].decode(errors="ignore")


def _volumes(jobs: Jobs, attribute: str) -> Rows:
    found = [(labels, getattr(r.status.volume, attribute, None)) for labels, r in jobs]
    return [(labels, size) for labels, size in found if size is not None]


def _finals(jobs: Jobs, attribute: str) -> Rows:
    found = [(labels, getattr(r.status.final_metrics, attribute, None)) for labels, r in jobs]
    return [(labels, float(text)) for labels, text in found if text is not None]


def _newer(history: list[Restart], last: Restart | None) -> list[Restart]:
    """Restarts after the last one that was counted."""
    if last is None or last not in history:
        return list(history) if last is None else [r for r in history if r.time > last.time]
    return history[history.index(last) + 1 :]


def _version() -> str:
    try:
        return version("dpo-operator")
    except PackageNotFoundError:
        return "unknown"
