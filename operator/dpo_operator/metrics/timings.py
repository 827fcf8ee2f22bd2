"""Histograms of detection and recovery times over all jobs, fed by status writes."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Histogram

from dpo_operator.api import conditions as c
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.planning.objects import ChildPod
from dpo_operator.planning.observed import Observed
from dpo_operator.queueing.key import Key


class Timings:
    """Both histograms, and the time at which each job's restart was decided."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._decided: dict[Key, float] = {}
        self._recovery = Histogram(
            "dpojob_recovery_seconds",
            "Time from the decision to restart until all pods run again.",
            buckets=(1, 2.5, 5, 10, 15, 30, 60, 90, 120, 300, 600, 1800),
            registry=registry,
        )
        self._detection = Histogram(
            "dpojob_detection_seconds",
            "Time from the end of a container, by its node's clock, until the status shows what follows.",
            buckets=(0.5, 1, 2, 3, 5, 10, 15, 30, 60, 120, 300),
            registry=registry,
        )

    def written(
        self, key: Key, before: DPOJobStatus, after: DPOJobStatus, seen: Observed | None, now: datetime
    ) -> None:
        """A status was written. now: time of the write, UTC. seen: the observation that the plan was based on."""
        if after.restarts > before.restarts:
            self._decided[key] = self._clock()
        restarted = _restarting(before) and not _restarting(after)
        if restarted and c.is_true(after.conditions, c.RUNNING):
            self._recovery.observe(self._since_decision(key, after, now))
        if not _restarting(after):
            self._decided.pop(key, None)
        moved = (after.phase, after.attempts) != (before.phase, before.attempts)
        if seen is not None and before.phase is not None and (moved or (after.is_final and not before.is_final)):
            ended = _ended_at(seen.pods_of(before.phase, before.attempt))
            if ended is not None:
                self._detection.observe(max(0.0, (now - ended).total_seconds()))

    def _since_decision(self, key: Key, status: DPOJobStatus, now: datetime) -> float:
        if key in self._decided:
            return self._clock() - self._decided[key]
        # Decided before an operator restart: use the recorded wall-clock time.
        history = status.restart_history
        return max(0.0, (now - history[-1].time).total_seconds()) if history else 0.0

    def forget(self, key: Key) -> None:
        """Drop a job that is gone."""
        self._decided.pop(key, None)


def _restarting(status: DPOJobStatus) -> bool:
    return c.is_true(status.conditions, c.RESTARTING)


def _ended_at(pods: tuple[ChildPod, ...]) -> datetime | None:
    """End of the first container that failed; without one, of the last that succeeded."""
    failed = [pod.exit.finished_at for pod in pods if pod.exit and pod.exit.code != 0 and pod.exit.finished_at]
    succeeded = [pod.exit.finished_at for pod in pods if pod.exit and pod.exit.code == 0 and pod.exit.finished_at]
    ended = min(failed, default="") or max(succeeded, default="")
    try:
        return datetime.fromisoformat(ended).astimezone(UTC) if ended else None
    except ValueError:
        return None
