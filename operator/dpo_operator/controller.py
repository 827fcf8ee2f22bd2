"""The operator's process: kopf watches and logs, a queue reconciles.

Handlers see only events, and only put the owning job's key on the queue. Handlers of other kinds (create, update,
timers, daemons) are not used: they add finalizers, with which a dead operator blocks deletions, and annotations.
"""

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import kopf
from prometheus_client import start_http_server

from dpo_operator.api import names
from dpo_operator.config import Config
from dpo_operator.kopf_settings import SILENT_WATCH_SECONDS, configure
from dpo_operator.kube.access import Access
from dpo_operator.kube.client import RESOURCES, ApiError, Client
from dpo_operator.kube.lease import Lease, LeaseLostError
from dpo_operator.kube.watches import Stream, Watches, hearing
from dpo_operator.metrics.jobs import JobMetrics
from dpo_operator.planning.plan import Settings
from dpo_operator.planning.validate import Problems, read_job, validate
from dpo_operator.queueing.key import Key
from dpo_operator.queueing.keys import KeyQueue
from dpo_operator.reconcile.observe import find_leftovers
from dpo_operator.reconcile.progress_reader import ProgressReader
from dpo_operator.reconcile.reconciler import Reconciler

logger = logging.getLogger(__name__)

Json = dict[str, Any]

# Pods and their Job change in bursts; one look serves a whole burst. While many keys wait, those that begin go first.
BURST_SECONDS = 0.05
LONGEST_BURST_SECONDS = 2.0
# The process ends within this time once it has begun to stop.
STOP_SECONDS = 10.0
WATCHED = ("Job", "Pod")
FIRST_LIST_SECONDS = 5.0
REMEMBERED_VERSIONS = 16


class Operator:
    """What runs besides kopf: the election, the queue with its workers, the periodic pass over all jobs, the metrics."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._metrics = JobMetrics()
        # The last versions that the watch delivered: it may tell old news after the newest.
        self._watched: dict[Key, deque[str]] = {}
        self._missed: dict[Key, str] = {}
        self._passes_missed = 0
        self._queue: KeyQueue | None = None
        self._lease: Lease | None = None
        self._work: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self.failed = False
        streams = [
            Stream(RESOURCES[kind].plural, namespace)
            for namespace in config.namespaces or (None,)
            for kind in (names.KIND, *WATCHED)
        ]
        behind = max(2 * config.resync_seconds, 30.0)
        self.watches = Watches(streams, 2 * SILENT_WATCH_SECONDS, behind)

    async def start(self) -> None:
        """Connect and begin. Raises kopf.PermanentError when the DPOJob resource is not installed."""
        access = await Access.load()
        requested = self._metrics.process.requested
        if self._config.election is not None:
            election = self._config.election
            # Connections of its own: no other request may delay a renewal.
            self._lease_client = Client(access, heard=requested)
            self._lease = Lease(
                self._lease_client, election.namespace, election.name, election.identity, election.seconds
            )
        self._client = Client(access, fence=self._lease.remaining if self._lease else None, heard=requested)
        self._reader = ProgressReader()
        try:
            await self._list()
        except ApiError as error:
            await self._close_clients()
            if error.is_gone:
                raise kopf.PermanentError(
                    f"{names.PLURAL}.{names.GROUP} is not installed in this cluster; install the CRD and start again"
                ) from error
            raise kopf.TemporaryError(f"the API server refused to list {names.PLURAL}: {error}", delay=5) from error
        except (OSError, TimeoutError) as error:
            await self._close_clients()
            raise kopf.TemporaryError(f"the API server does not answer: {error}", delay=3) from error
        self._metrics.process.follow(None, self.watches.ages)
        self._http, _ = start_http_server(self._config.metrics_port, registry=self._metrics.registry)
        self._work = asyncio.create_task(self._lead(), name="lead")

    async def stop(self) -> None:
        """Stop at once. Whatever was under way goes on from the cluster's state at the next start."""
        # kopf waits 5 s for its own task that waits for this.
        self.ended.set()
        if self._work is None:
            return
        # After an error in one of its watches kopf waits for the others, which wait for credentials for ever.
        end = threading.Timer(STOP_SECONDS, os._exit, (1,))
        end.daemon = True
        end.start()
        while not self._work.done():
            self._work.cancel()
            await asyncio.wait({self._work}, timeout=1)
        if self._queue is not None:
            await self._queue.close()
        if self._lease is not None:
            # After the last write, so that the next leader starts at once and alone.
            await self._lease.release()
        await self._reader.close()
        await self._close_clients()
        self._http.shutdown()
        self._http.server_close()

    async def _close_clients(self) -> None:
        await self._client.close()
        if self._lease is not None:
            await self._lease_client.close()

    async def _lead(self) -> None:
        """Wait for the Lease, then work until it's lost: such a process ends, and its successor starts from nothing."""
        if self._lease is not None:
            await self._lease.acquire()
        self._metrics.process.leader.set(1)
        settings = Settings(
            image=self._config.image,
            progress_seconds=self._config.progress_seconds,
            gpu_memory=self._config.gpu_memory,
            metrics_namespaces=self._config.metrics_namespaces,
            schedulers=self._config.schedulers,
        )
        self._reconciler = Reconciler(
            self._client,
            self._reader,
            settings,
            self._metrics,
            look_seconds=self._config.resync_seconds,
            shown=self._shown,
        )
        self._reconciler.turns.expect(await self._known())
        self._queue = KeyQueue(self._reconciler.reconcile, self._config.workers)
        self._reconciler.turns.wake = self._queue.add
        self._metrics.process.follow(self._queue, self.watches.ages)
        resync = asyncio.create_task(self._resync_forever(), name="resync")
        try:
            if self._lease is None:
                await resync
            else:
                await self._lease.keep()
        except LeaseLostError as error:
            logger.error("%s; this process ends", error)
            await self._queue.close()
            self._metrics.process.leader.set(0)
            self.failed = True
            self.ended.set()
        finally:
            resync.cancel()

    async def _known(self) -> list[Key]:
        """Jobs that exist. Without a quick answer, those that the watches told of: the Lease has to be renewed."""
        try:
            async with asyncio.timeout(FIRST_LIST_SECONDS):
                return [_key(raw["metadata"]) for raw in await self._list()]
        except (ApiError, OSError, TimeoutError) as error:
            logger.warning("the first list: %s", str(error) or type(error).__name__)
            return list(self._watched)

    async def _left_over(self) -> set[Key]:
        """Jobs whose pods are being deleted. Those of a job that is gone, on a lost node, may cause no event any more."""
        try:
            async with asyncio.timeout(FIRST_LIST_SECONDS):
                return await find_leftovers(self._client, self._config.namespaces or (None,))
        except (ApiError, OSError, TimeoutError) as error:
            logger.warning("the first list of pods: %s", str(error) or type(error).__name__)
            return set()

    def complaint(self) -> str:
        """Why this process should be started anew; empty while it's well. A standby is well."""
        if self._work is None or self._work.done() or (self._queue is not None and not self._queue.alive):
            return "a task of the operator ended"
        if self._passes_missed >= 2:
            return "the watch of dpojobs has not delivered what two passes over all jobs in a row have shown"
        return self.watches.complaint()

    def on_job(self, raw: Mapping[str, Any], deleted: bool) -> None:
        """A DPOJob was added, changed or deleted."""
        metadata = raw["metadata"]
        key, version = _key(metadata), str(metadata["resourceVersion"])
        self._delivered(names.KIND, metadata)
        self._watched.setdefault(key, deque(maxlen=REMEMBERED_VERSIONS)).append(version)
        if deleted:
            self._watched.pop(key, None)
        if self._queue is not None and self._reconciler.changed(key, version, None if deleted else dict(raw)):
            self._queue.add(key, slow=_is_hopeless(raw))

    def on_child(self, kind: str, raw: Mapping[str, Any]) -> None:
        """A Job or pod of a DPOJob changed."""
        metadata = raw["metadata"]
        self._delivered(kind, metadata)
        name = (metadata.get("labels") or {}).get(names.LABEL_JOB)
        if self._queue is None or not name:
            return
        key = Key(str(metadata["namespace"]), str(name))
        if self._reconciler.child_changed(key, str(metadata["resourceVersion"])):
            crowd = 1 + self._queue.depth("normal")
            self._queue.add_after(key, min(LONGEST_BURST_SECONDS, BURST_SECONDS * crowd))

    def _delivered(self, kind: str, metadata: Mapping[str, Any]) -> None:
        self.watches.delivered(self._stream(kind, str(metadata["namespace"])), str(metadata["resourceVersion"]))

    def _shown(self, kind: str, namespace: str, items: Sequence[Json]) -> None:
        # Anyone may give a pod some of our labels; the watch shows those with this one.
        ours = [raw["metadata"] for raw in items if names.LABEL_JOB in (raw["metadata"].get("labels") or {})]
        self.watches.shown(self._stream(kind, namespace), [str(metadata["resourceVersion"]) for metadata in ours])

    def _stream(self, kind: str, namespace: str | None) -> Stream:
        return Stream(RESOURCES[kind].plural, namespace if self._config.namespaces else None)

    async def _list(self) -> list[Json]:
        """All DPOJobs. Raises ApiError when no namespace can be read; one that can't does not stop the others."""
        found: list[Json] = []
        refusals: list[ApiError] = []
        namespaces = self._config.namespaces or (None,)
        for namespace in namespaces:
            try:
                items = await self._client.list(names.KIND, namespace)
            except ApiError as error:
                if error.code not in (403, 404):
                    raise
                logger.warning("%s in %s can't be read: %s", names.PLURAL, namespace or "all namespaces", error)
                refusals.append(error)
                continue
            versions = [str(raw["metadata"]["resourceVersion"]) for raw in items]
            self.watches.shown(self._stream(names.KIND, namespace), versions)
            found += items
        self._metrics.process.unreadable.set(len(refusals))
        if len(refusals) == len(namespaces):
            raise refusals[0]
        return found

    async def _resync_forever(self) -> None:
        assert self._queue is not None
        # Here, where the renewal of the Lease does not wait for it.
        for key in await self._left_over():
            self._queue.add(key)
        while True:
            try:
                with self._metrics.timed("resync"):
                    await self._resync_once()
            except Exception as error:
                # The next pass is the retry; this loop must not end.
                logger.warning("resync: %s", str(error) or type(error).__name__)
            await asyncio.sleep(self._config.resync_seconds)

    async def _resync_once(self) -> None:
        assert self._queue is not None
        listed = {_key(raw["metadata"]): raw for raw in await self._list()}
        versions = {key: str(raw["metadata"]["resourceVersion"]) for key, raw in listed.items()}
        for key in listed.keys() | self._reconciler.known():
            if key in listed and self._reconciler.is_settled(key, versions[key]):
                continue
            self._reconciler.changed(key)
            self._queue.add(key, slow=key in listed and _is_hopeless(listed[key]))
        missed = {key: version for key, version in versions.items() if version not in self._watched.get(key, ())}
        # Between a write and its event some versions are always missing; twice the same one means a deaf watch.
        twice = sum(1 for key, version in missed.items() if self._missed.get(key) == version)
        self._metrics.unobserved.set(twice)
        self._passes_missed = self._passes_missed + 1 if twice else 0
        self._missed = missed


def _is_hopeless(raw: Mapping[str, Any]) -> bool:
    """Whether a new job will be refused: such a one has time. The event has the whole spec, so that asking costs little."""
    if (raw.get("status") or {}).get("state"):
        return False
    job = read_job(raw)
    return isinstance(job, Problems) or validate(job) is not None


def _key(metadata: Any) -> Key:
    return Key(str(metadata["namespace"]), str(metadata["name"]))


def build_registry(operator: Operator) -> kopf.OperatorRegistry:
    """kopf handlers of one operator."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        access = await Access.load()
        session = access.open(response_class=hearing(operator.watches.heard))
        return kopf.AiohttpSession(server=access.server, aiohttp_session=session, default_namespace=None)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)
        await operator.start()

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await operator.stop()

    @kopf.on.probe(registry=registry, id="tasks")
    def probe(**_: Any) -> str:
        if complaint := operator.complaint():
            raise kopf.PermanentError(complaint)
        return "alive"

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def job_event(event: Any, **_: Any) -> None:
        operator.on_job(event["object"], event["type"] == "DELETED")

    for kind in WATCHED:
        group, _, version = RESOURCES[kind].prefix.removeprefix("apis/").removeprefix("api/").rpartition("/")

        async def child_event(event: Any, kind: str = kind, **_: Any) -> None:
            operator.on_child(kind, event["object"])

        kopf.on.event(group, version, RESOURCES[kind].plural, registry=registry, id=f"child-{kind}")(child_event)
    return registry


async def run(config: Config) -> bool:
    """Run until a signal stops the process, True, or until another one took the lead from it, False."""
    operator = Operator(config)
    await kopf.operator(
        registry=build_registry(operator),
        standalone=True,
        clusterwide=not config.namespaces,
        namespaces=config.namespaces,
        liveness_endpoint=f"http://0.0.0.0:{config.health_port}/healthz",
        stop_flag=operator.ended,
    )
    return not operator.failed
