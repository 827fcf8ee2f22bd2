"""Every metric of the project, read from the code that exports it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dpo_operator.metrics.jobs import JobFamilies, JobMetrics
from dpo_operator.metrics.timings import Timings
from dpo_trainer.telemetry.prometheus import TrainerMetrics


@dataclass(frozen=True)
class Metric:
    """name: as in a query; of a histogram, without _bucket, _sum and _count."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str
    source: str

    @property
    def series(self) -> tuple[str, ...]:
        """Names under which Prometheus knows it."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


def catalogue() -> list[Metric]:
    """Metrics of the operator and the trainer, by name within each."""
    trainer = TrainerMetrics(rank_zero=True)
    operator = JobMetrics()
    Timings(operator.registry)
    operator.registry.register(JobFamilies([]))
    sources = (("operator", operator.registry), ("trainer", trainer.registry))
    return [m for source, registry in sources for m in sorted(_metrics(registry, source), key=lambda m: m.name)]


def series_names() -> set[str]:
    """Every name that a query may use."""
    return {name for metric in catalogue() for name in metric.series}


def _metrics(registry: Any, source: str) -> Iterator[Metric]:
    # The library has no public way to a metric's label names before it has a child.
    collectors = {name: collector for collector, names in registry._collector_to_names.items() for name in names}
    for family in registry.collect():
        declared = getattr(collectors.get(family.name), "_labelnames", None)
        labels = tuple(declared if declared is not None else getattr(family, "_labelnames", ()))
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield Metric(name, family.type, labels, family.documentation, source)
