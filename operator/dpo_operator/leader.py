"""The work of the one operator process that may write: a queue of jobs and a periodic look at all of them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.status import FINAL_STATES
from dpo_operator.kube.client import ApiError, Client
from dpo_operator.metrics.jobs import JobMetrics
from dpo_operator.planning.validate import Problems, read_job, validate
from dpo_operator.queueing.key import Key
from dpo_operator.queueing.keys import KeyQueue
from dpo_operator.reconcile.deliveries import Deliveries
from dpo_operator.reconcile.observe import OnList, find_leftovers
from dpo_operator.reconcile.progress_reader import ProgressReader
from dpo_operator.reconcile.reconciler import Reconciler

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Namespaces = tuple[str | None, ...]

# Pods and their Job change in bursts. One pass serves a whole burst; the delay grows with the backlog, so that new
# jobs go first.
BURST_SECONDS = 0.05
LONGEST_BURST_SECONDS = 2.0
# The Lease must be renewed while a new leader lists.
FIRST_LIST_SECONDS = 5.0


class JobLists:
    """Lists DPOJobs and their pods in all watched namespaces.

    namespaces: (None,) for the whole cluster. on_list: called with each page of a list.
    """

    def __init__(self, client: Client, namespaces: Namespaces, metrics: JobMetrics, on_list: OnList) -> None:
        self._client = client
        self._namespaces = namespaces
        self._metrics = metrics
        self._on_list = on_list

    async def pages(self) -> AsyncIterator[list[Json]]:
        """All DPOJobs, page by page, because thousands at once would fill the memory.

        One namespace that can't be read does not stop the others; ApiError when none can be read.
        """
        refusals: list[ApiError] = []
        for namespace in self._namespaces:
            try:
                async for items in self._client.pages(names.KIND, namespace):
                    self._on_list(names.KIND, namespace, items)
                    yield items
            except ApiError as error:
                if error.code not in (403, 404):
                    raise
                logger.warning("%s in %s can't be read: %s", names.PLURAL, namespace or "all namespaces", error)
                refusals.append(error)
        self._metrics.process.unreadable.set(len(refusals))
        if len(refusals) == len(self._namespaces):
            raise refusals[0]

    async def check(self) -> None:
        """Read all DPOJobs, and keep nothing. ApiError when none can be read."""
        async for _ in self.pages():
            pass

    async def first_keys(self, deliveries: Deliveries) -> list[Key]:
        """Keys of all jobs that have not ended: others have no turn.

        When the list is not complete within FIRST_LIST_SECONDS, also of all jobs that the watch delivered.
        """
        found: list[Key] = []
        try:
            async with asyncio.timeout(FIRST_LIST_SECONDS):
                async for page in self.pages():
                    found += [key_of(raw["metadata"]) for raw in page if not _has_ended(raw)]
        except (ApiError, OSError, TimeoutError) as error:
            logger.warning("the first list: %s", str(error) or type(error).__name__)
            found += deliveries.keys()
        return found

    async def keys_with_terminating_pods(self) -> set[Key]:
        """Jobs with pods that are being deleted. Pods of a deleted job on a lost node may cause no more events."""
        try:
            async with asyncio.timeout(FIRST_LIST_SECONDS):
                return await find_leftovers(self._client, self._namespaces)
        except (ApiError, OSError, TimeoutError) as error:
            logger.warning("the first list of pods: %s", str(error) or type(error).__name__)
            return set()


class Leader:
    """Reconciles the jobs that watches and the periodic pass name. Close it before the Lease is released.

    reader: closed with the leader. queue: runs `reconciler.reconcile`.
    """

    def __init__(
        self,
        lists: JobLists,
        reader: ProgressReader,
        reconciler: Reconciler,
        queue: KeyQueue,
        metrics: JobMetrics,
        deliveries: Deliveries,
    ) -> None:
        self._lists = lists
        self._reader = reader
        self._reconciler = reconciler
        self._queue = queue
        self._metrics = metrics
        self._deliveries = deliveries
        reconciler.turns.wake = queue.add

    @property
    def is_alive(self) -> bool:
        """Whether all workers run."""
        return self._queue.alive

    def on_job(self, key: Key, version: str, raw: Mapping[str, Any] | None) -> None:
        """A DPOJob was added or changed. raw: None if it was deleted."""
        if self._reconciler.changed(key, version, None if raw is None else dict(raw)):
            self._queue.add(key, slow=raw is not None and (_has_ended(raw) or _will_be_rejected(raw)))

    def on_child(self, key: Key, version: str) -> None:
        """A Job or pod of a DPOJob changed."""
        if self._reconciler.child_changed(key, version):
            backlog = 1 + self._queue.depth("normal")
            self._queue.add_after(key, min(LONGEST_BURST_SECONDS, BURST_SECONDS * backlog))

    async def resync_forever(self, seconds: float) -> None:
        """A list of all jobs every so many seconds, and a pass over those that are not settled: it heals what a watch missed."""
        # Here, because the renewal of the Lease does not wait for this task.
        for key in await self._lists.keys_with_terminating_pods():
            self._queue.add(key)
        while True:
            try:
                with self._metrics.timed("resync"):
                    await self._resync()
            except Exception as error:
                # The next pass is the retry; this loop must not end.
                logger.warning("resync: %s", str(error) or type(error).__name__)
            await asyncio.sleep(seconds)

    async def _resync(self) -> None:
        versions: dict[Key, str] = {}
        async for page in self._lists.pages():
            found = {key_of(raw["metadata"]): str(raw["metadata"]["resourceVersion"]) for raw in page}
            versions |= found
            self._look_again(key for key, version in found.items() if not self._reconciler.is_settled(key, version))
        self._look_again(self._reconciler.known() - versions.keys())
        self._metrics.unobserved.set(self._deliveries.compare(versions))

    def _look_again(self, keys: Iterable[Key]) -> None:
        """Full passes without a known change. They wait in the slow lane: no new job and no failure is behind thousands of them."""
        for key in keys:
            self._reconciler.changed(key)
            self._queue.add(key, slow=True)

    async def close(self) -> None:
        """Stop the workers, after which nothing is written, and close the connections to trainer pods."""
        await self._queue.close()
        await self._reader.close()


def key_of(metadata: Any) -> Key:
    """Key of an object's metadata."""
    return Key(str(metadata["namespace"]), str(metadata["name"]))


def _has_ended(raw: Mapping[str, Any]) -> bool:
    """Whether a job was complete or had failed when it was read."""
    return (raw.get("status") or {}).get("state") in FINAL_STATES


def _will_be_rejected(raw: Mapping[str, Any]) -> bool:
    """Whether a new job will fail validation: it goes to the slow lane. Cheap, because the event holds the spec."""
    if (raw.get("status") or {}).get("state"):
        return False
    job = read_job(raw)
    return isinstance(job, Problems) or validate(job) is not None
