"""The work of the one operator process that may write: a queue of jobs and a periodic pass over all of them."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from dpo_operator.api import names
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

    namespaces: (None,) for the whole cluster. on_list: called with the result of each list.
    """

    def __init__(self, client: Client, namespaces: Namespaces, metrics: JobMetrics, on_list: OnList) -> None:
        self._client = client
        self._namespaces = namespaces
        self._metrics = metrics
        self._on_list = on_list

    async def jobs(self) -> list[Json]:
        """All DPOJobs. One namespace that can't be read does not stop the others; ApiError when none can be read."""
        found: list[Json] = []
        refusals: list[ApiError] = []
        for namespace in self._namespaces:
            try:
                items = await self._client.list(names.KIND, namespace)
            except ApiError as error:
                if error.code not in (403, 404):
                    raise
                logger.warning("%s in %s can't be read: %s", names.PLURAL, namespace or "all namespaces", error)
                refusals.append(error)
                continue
            self._on_list(names.KIND, namespace, items)
            found += items
        self._metrics.process.unreadable.set(len(refusals))
        if len(refusals) == len(self._namespaces):
            raise refusals[0]
        return found

    async def first_keys(self, deliveries: Deliveries) -> list[Key]:
        """Keys of all jobs; without an answer within FIRST_LIST_SECONDS, of the jobs that the watch delivered."""
        try:
            async with asyncio.timeout(FIRST_LIST_SECONDS):
                return [key_of(raw["metadata"]) for raw in await self.jobs()]
        except (ApiError, OSError, TimeoutError) as error:
            logger.warning("the first list: %s", str(error) or type(error).__name__)
            return deliveries.keys()

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
            self._queue.add(key, slow=raw is not None and _will_be_rejected(raw))

    def on_child(self, key: Key, version: str) -> None:
        """A Job or pod of a DPOJob changed."""
        if self._reconciler.child_changed(key, version):
            backlog = 1 + self._queue.depth("normal")
            self._queue.add_after(key, min(LONGEST_BURST_SECONDS, BURST_SECONDS * backlog))

    async def resync_forever(self, seconds: float) -> None:
        """A pass over all jobs every so many seconds, which heals what a watch missed."""
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
        listed = {key_of(raw["metadata"]): raw for raw in await self._lists.jobs()}
        versions = {key: str(raw["metadata"]["resourceVersion"]) for key, raw in listed.items()}
        for key in listed.keys() | self._reconciler.known():
            if key in listed and self._reconciler.is_settled(key, versions[key]):
                continue
            self._reconciler.changed(key)
            self._queue.add(key, slow=key in listed and _will_be_rejected(listed[key]))
        self._metrics.unobserved.set(self._deliveries.compare(versions))

    async def close(self) -> None:
        """Stop the workers, after which nothing is written, and close the connections to trainer pods."""
        await self._queue.close()
        await self._reader.close()


def key_of(metadata: Any) -> Key:
    """Key of an object's metadata."""
    return Key(str(metadata["namespace"]), str(metadata["name"]))


def _will_be_rejected(raw: Mapping[str, Any]) -> bool:
    """Whether a new job will fail validation: it goes to the slow lane. Cheap, because the event holds the spec."""
    if (raw.get("status") or {}).get("state"):
        return False
    job = read_job(raw)
    return isinstance(job, Problems) or validate(job) is not None
