"""Prometheus metrics of the operator.

Series of jobs are made from memory when they are scraped, so that the series of a deleted job vanish with it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dpo_operator.api.status import DPOJobStatus, Restart, State
from dpo_operator.metrics.process import ProcessMetrics
from dpo_operator.planning.failures import REASONS
from dpo_operator.queueing.key import Key

LABELS = ("namespace", "dpojob")


@dataclass
class JobRecord:
    """What is exported of one job."""

    created: str
    spec: dict[str, Any]
    status: DPOJobStatus
    restarts: dict[str, int] = field(default_factory=dict)
    last_restart: Restart | None = None


class JobMetrics(Collector):
    """All metrics of the operator, in a registry of their own."""

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
        self.registry.register(self)

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
            record = self._jobs[key] = JobRecord(created, {}, status)
        # Only what is exported: specs may be large, and records live as long as their jobs. A slim object has no spec any more.
        if spec := raw.get("spec"):
            record.spec = {part: {"name": (spec.get(part) or {}).get("name", "")} for part in ("model", "method")}
            record.spec["adapter"] = {"type": (spec.get("adapter") or {}).get("type", "")}
        record.status = status
        for restart in _newer(status.restart_history, record.last_restart):
            record.restarts[restart.reason] = record.restarts.get(restart.reason, 0) + 1
            record.last_restart = restart
            if not is_new and restart.reason in REASONS:
                self._restarts.labels(restart.reason).inc()

    def forget(self, key: Key) -> None:
        """A job is gone, and so are its series."""
        self._jobs.pop(key, None)

    def collect(self) -> Iterator[Metric]:
        """Series of all jobs."""
        jobs = [((key.namespace, key.name), record) for key, record in self._jobs.copy().items()]
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
        text = "A rank that is much slower than the others now: how many times as long it takes for the same work."
        yield _family("dpojob_straggler_ratio", text, ("rank",), _stragglers(jobs))
        restarts = CounterMetricFamily(
            "dpojob_restarts", "Restarts of a job since the operator knows it.", labels=(*LABELS, "reason")
        )
        for labels, record in jobs:
            for reason, count in record.restarts.items():
                restarts.add_metric((*labels, reason), count)
        yield restarts


Rows = list[tuple[tuple[str, ...], float]]
Jobs = list[tuple[tuple[str, str], JobRecord]]


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
