"""Series of what jobs use: GPU time, and the tokens they are trained on."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.usage import UsageStatus

# The text of a job's series is kept while the job does not change, so no series may grow with the clock: what runs now has its start.
_FAMILIES: tuple[
    tuple[type[CounterMetricFamily | GaugeMetricFamily], str, str, Callable[[DPOJobStatus], float | None]], ...
] = (
    (
        CounterMetricFamily,
        "dpojob_gpu_seconds",
        "GPU time of a job's attempts that ended.",
        lambda s: _usage(s).gpu_seconds,
    ),
    (GaugeMetricFamily, "dpojob_running_gpus", "GPUs of a job's pods while all of them run.", lambda s: _usage(s).gpus),
    (
        GaugeMetricFamily,
        "dpojob_running_since_timestamp_seconds",
        "When all pods with GPUs of the attempt that runs now ran.",
        lambda s: since.timestamp() if (since := _usage(s).since) is not None else None,
    ),
    (
        GaugeMetricFamily,
        "dpojob_trained_tokens",
        "Tokens of prompts and answers that a job, or its newest round, was trained on; each step counts once.",
        lambda s: s.progress.tokens if s.progress is not None else None,
    ),
)


def usage_families(labels: Sequence[str], jobs: Sequence[tuple[tuple[str, str], DPOJobStatus]]) -> Iterator[Metric]:
    """labels: names of each job's two."""
    for kind, name, text, value in _FAMILIES:
        family = kind(name, text, labels=labels)
        for values, status in jobs:
            if (number := value(status)) is not None:
                family.add_metric(values, number)
        yield family


def _usage(status: DPOJobStatus) -> UsageStatus:
    return status.usage or UsageStatus()
