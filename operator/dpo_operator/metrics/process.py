"""Prometheus metrics of the operator's own work: queue, watches, leadership, requests."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dpo_operator.queueing.key import LaneName
from dpo_operator.queueing.keys import KeyQueue

LANES: tuple[LaneName, ...] = ("normal", "slow")


class ProcessMetrics(Collector):
    """Queue, watches, leadership and requests of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "dpojob_operator_api_requests",
            "Requests to the API server other than watches; code 0: no answer came.",
            ("method", "resource", "code"),
            registry=registry,
        )
        self.leader = Gauge("dpojob_operator_leader", "1 while this process is the one that acts.", registry=registry)
        self.unreadable = Gauge(
            "dpojob_operator_unreadable_namespaces",
            "Watched namespaces whose DPOJobs could not be listed at the last pass.",
            registry=registry,
        )
        self._queue: KeyQueue | None = None
        self._ages: Callable[[], dict[str, float]] = dict
        ProcessCollector(registry=registry)
        registry.register(self)

    def requested(self, method: str, path: str, status: int) -> None:
        """Count a request by the plural of its resource: names and namespaces would make too many series."""
        self._requests.labels(method, _plural(path), str(status)).inc()

    def set_sources(self, queue: KeyQueue | None, ages: Callable[[], dict[str, float]]) -> None:
        """Export this queue and these seconds since each resource's watches were active."""
        self._queue, self._ages = queue, ages

    def collect(self) -> Iterator[Metric]:
        """Metrics that are computed when they are scraped."""
        depth = GaugeMetricFamily("dpojob_operator_queue_depth", "DPOJobs that wait for a worker.", labels=("lane",))
        oldest = GaugeMetricFamily(
            "dpojob_operator_queue_oldest_seconds", "How long the first of them has waited.", labels=("lane",)
        )
        for lane in LANES:
            depth.add_metric((lane,), self._queue.depth(lane) if self._queue else 0)
            oldest.add_metric((lane,), self._queue.oldest_seconds(lane) if self._queue else 0)
        yield depth
        yield oldest
        ages = GaugeMetricFamily(
            "dpojob_operator_watch_age_seconds",
            "Time since a resource's watch was heard, bookmarks included; of several namespaces the most silent one.",
            labels=("resource",),
        )
        for resource, age in self._ages().items():
            ages.add_metric((resource,), age)
        yield ages


def _plural(path: str) -> str:
    """`pods` of /api/v1/namespaces/a/pods/b, `dpojobs/status` of …/dpojobs/b/status."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    parts = parts[2:] if parts[:1] == ["namespaces"] else parts
    return "/".join([*parts[:1], *parts[2:3]])
