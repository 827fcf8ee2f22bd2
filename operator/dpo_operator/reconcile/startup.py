"""Attempts that are starting: reads Kubernetes' events about their pods and emits warnings."""

import asyncio
import time
from collections.abc import Hashable
from dataclasses import dataclass, field

from dpo_operator.api import conditions as c
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.shape import pod_count
from dpo_operator.kube.client import Client
from dpo_operator.planning.actions import Event
from dpo_operator.planning.announcing import REPEAT_SECONDS, obstacle_event
from dpo_operator.planning.objects import Notice
from dpo_operator.planning.observed import Observed, Startup
from dpo_operator.planning.waiting import FIRST_POLL_SECONDS, POLL_SECONDS, RETRY_PODS_SECONDS
from dpo_operator.queueing.stopwatch import Clock, Stopwatch

# Pods of a gang mostly fail for the same reason, and each is a request.
PODS_AT_ONCE = 3


@dataclass
class StartupTracker:
    """Memory of one job.

    notices: Kubernetes' events of the last read. retried: the wait and its interval in which refused pods were last
    retried. event_times: time of the last event by reason, for the attempt event_attempt. last_reason: of the newest event.
    """

    clock: Clock = time.monotonic
    waiting: Stopwatch = field(default_factory=Stopwatch)
    notices: tuple[Notice, ...] = ()
    looked_at: float | None = None
    retried: tuple[Hashable, int] = (None, 0)
    event_times: dict[str, float] = field(default_factory=dict)
    event_attempt: Hashable = None
    last_reason: str | None = None

    async def observe(self, client: Client, job: DPOJob, status: DPOJobStatus, seen: Observed) -> Startup:
        """The time since the attempt's pods should all run, and Kubernetes' events about them when that is long."""
        fact = _waits_for(job, status, seen)
        self.waiting.keep([] if fact is None else [fact])
        if fact is None:
            self.notices, self.looked_at = (), None
            return seen.startup
        seconds = self.waiting.seconds(fact)
        due = self.looked_at is None or self.clock() - self.looked_at >= POLL_SECONDS
        # A gang that waits for its turn has no pods yet.
        if seconds >= FIRST_POLL_SECONDS and due and (uids := _unexplained(job, status, seen)):
            self.looked_at = self.clock()
            self.notices = await _notices(client, job.metadata.namespace, uids)
        # In the first interval the Job controller's own retries suffice.
        turn = int(seconds // RETRY_PODS_SECONDS)
        again = turn > 0 and self.retried != (fact, turn)
        self.retried = fact, turn
        return Startup(seconds, self.notices, again)

    def announce(self, before: DPOJobStatus, status: DPOJobStatus, seen: Observed | None) -> tuple[Event, ...]:
        """Warning about the current obstacle, once per change of its reason. before: the stored status."""
        if self.last_reason is None:
            # After an operator restart, the reason in the status was already reported.
            shown = c.find(before.conditions, c.RUNNING)
            self.last_reason = shown.reason if shown is not None else ""
        attempt = (status.phase, status.attempt)
        if self.event_attempt not in (None, attempt):
            self.event_times, self.last_reason = {}, ""
        self.event_attempt = attempt
        event = obstacle_event(status, seen.startup.waiting_seconds if seen else 0.0)
        if c.is_true(status.conditions, c.RUNNING):
            self.last_reason = ""
        if event is None or event.reason == self.last_reason:
            return ()
        now, earlier = self.clock(), self.event_times.get(event.reason)
        if earlier is not None and now - earlier < REPEAT_SECONDS:
            return ()
        self.event_times[event.reason], self.last_reason = now, event.reason
        return (event,)


def _waits_for(job: DPOJob, status: DPOJobStatus, seen: Observed) -> Hashable:
    """The Job whose pods do not all run, as far as it's known; None when nothing is waited for."""
    if status.phase is None or status.is_final or job.spec.suspend:
        return None
    child = seen.job_of(status.phase, status.attempt)
    pods = seen.pods_of(status.phase, status.attempt)
    started = {pod.index for pod in pods if pod.running or pod.ended}
    if len(started) >= pod_count(job, status.phase) or (child is not None and child.suspended):
        return None
    return status.phase, status.attempt, child.uid if child else ""


def _unexplained(job: DPOJob, status: DPOJobStatus, seen: Observed) -> list[str]:
    """UIDs of objects whose own status does not explain the wait: a Job without all of its pods, pods that do not start."""
    assert status.phase is not None
    child = seen.job_of(status.phase, status.attempt)
    pods = seen.pods_of(status.phase, status.attempt)
    missing = child is not None and len({pod.index for pod in pods}) < pod_count(job, status.phase)
    starting = [pod.uid for pod in pods if pod.node and not pod.running and not pod.ended]
    return ([child.uid] if child is not None and missing else []) + starting[:PODS_AT_ONCE]


async def _notices(client: Client, namespace: str, uids: list[str]) -> tuple[Notice, ...]:
    """Events about these objects, ordered by resourceVersion because event times use different clocks."""
    found = await asyncio.gather(
        *(client.list("Event", namespace, field_selector=f"involvedObject.uid={uid}") for uid in uids)
    )
    raw = sorted((event for events in found for event in events), key=lambda e: int(e["metadata"]["resourceVersion"]))
    return tuple(Notice.from_raw(event) for event in raw)
