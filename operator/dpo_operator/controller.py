"""The operator's process: kopf watches and logs, a queue reconciles.

Handlers see only events, and only put the owning job's key on the queue. Handlers of other kinds (create, update,
timers, daemons) are not used: they add finalizers, with which a dead operator blocks deletions, and annotations.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import kopf

from dpo_operator.api import names
from dpo_operator.config import Config
from dpo_operator.kopf_settings import SILENT_WATCH_SECONDS, configure
from dpo_operator.kube.access import Access
from dpo_operator.kube.client import RESOURCES, ApiError, Client, OnResponse
from dpo_operator.kube.lease import Lease, LeaseLostError
from dpo_operator.kube.watches import Stream, Watches, tracking_response
from dpo_operator.leader import JobLists, Leader, key_of
from dpo_operator.metrics.jobs import JobMetrics
from dpo_operator.metrics.server import MetricsServer
from dpo_operator.planning.plan import Settings
from dpo_operator.queueing.key import Key
from dpo_operator.queueing.keys import KeyQueue
from dpo_operator.reconcile.deliveries import Deliveries
from dpo_operator.reconcile.progress_reader import ProgressReader
from dpo_operator.reconcile.reconciler import Reconciler

logger = logging.getLogger(__name__)

Json = dict[str, Any]

# The process ends within this time once it has begun to stop.
STOP_SECONDS = 10.0
WATCHED = ("Job", "Pod")


@dataclass(frozen=True)
class LeaseConnection:
    """The Lease that this process competes for. client: its own, so that no other request delays a renewal."""

    client: Client
    lease: Lease


@dataclass(frozen=True)
class Connections:
    """Clients of the API server. client: writes only while this process holds the Lease. candidacy: None without leader election."""

    client: Client
    candidacy: LeaseConnection | None

    @classmethod
    async def open(cls, config: Config, on_response: OnResponse) -> "Connections":
        """Connect to the API server that Access.load finds."""
        access = await Access.load()
        if (chosen := config.election) is None:
            return cls(Client(access, on_response=on_response), None)
        unfenced = Client(access, on_response=on_response)
        lease = Lease(unfenced, chosen.namespace, chosen.name, chosen.identity, chosen.seconds)
        fenced = Client(access, fence=lease.remaining, on_response=on_response)
        return cls(fenced, LeaseConnection(unfenced, lease))

    async def release(self) -> None:
        """Give the Lease up after the last write, so that the next leader starts at once and alone."""
        if self.candidacy is not None:
            await self.candidacy.lease.release()

    async def close(self) -> None:
        """Close all connections."""
        await self.client.close()
        if self.candidacy is not None:
            await self.candidacy.client.close()


@dataclass(frozen=True)
class Started:
    """What runs between start and stop. lead: the task that waits for the Lease and then leads."""

    connections: Connections
    metrics_server: MetricsServer
    lead: asyncio.Task[None]


class Operator:
    """The watch side of the process, and its life: start, wait for the Lease, lead, stop.

    ended: kopf stops when it is set. failed: whether the process must exit with an error.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._metrics = JobMetrics()
        self._deliveries = Deliveries()
        self._started: Started | None = None
        self._leader: Leader | None = None
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
        """Connect, serve metrics and compete for the Lease.

        Raises kopf.TemporaryError when the API server does not answer, or says that it has no DPOJobs.
        """
        connections = await Connections.open(self._config, self._metrics.process.requested)
        lists = JobLists(connections.client, self._config.namespaces or (None,), self._metrics, self._on_list)
        try:
            await lists.check()
        except ApiError as error:
            await connections.close()
            if error.code == 404:
                raise kopf.TemporaryError(
                    f"{names.PLURAL}.{names.GROUP} is not installed in this cluster, or a gateway answered 404; install the CRD",
                    delay=5,
                ) from error
            raise kopf.TemporaryError(f"the API server refused to list {names.PLURAL}: {error}", delay=5) from error
        except (OSError, TimeoutError) as error:
            await connections.close()
            raise kopf.TemporaryError(f"the API server does not answer: {error}", delay=3) from error
        self._metrics.process.set_sources(None, self.watches.ages)
        server = MetricsServer(self._metrics.render, self._config.metrics_port)
        lead = asyncio.create_task(self._lead(connections, lists), name="lead")
        self._started = Started(connections, server, lead)

    async def stop(self) -> None:
        """Stop at once. The next start resumes from the cluster's state."""
        # kopf gives its stop handlers 5 s.
        self.ended.set()
        if self._started is None:
            return
        started = self._started
        # After an error in one of its watches kopf waits for the others, which wait for credentials for ever.
        end = threading.Timer(STOP_SECONDS, os._exit, (1,))
        end.daemon = True
        end.start()
        while not started.lead.done():
            started.lead.cancel()
            await asyncio.wait({started.lead}, timeout=1)
        if self._leader is not None:
            await self._leader.close()
        await started.connections.release()
        await started.connections.close()
        started.metrics_server.close()

    async def _lead(self, connections: Connections, lists: JobLists) -> None:
        """Wait for the Lease, then work until it's lost. On loss the process exits; a fresh process takes over."""
        lease = connections.candidacy.lease if connections.candidacy else None
        if lease is not None:
            await lease.acquire()
        self._metrics.process.leader.set(1)
        leader = self._leader = self._build_leader(connections.client, lists, await lists.first_keys(self._deliveries))
        resync = asyncio.create_task(leader.resync_forever(self._config.resync_seconds), name="resync")
        try:
            if lease is None:
                await resync
            else:
                await lease.keep()
        except LeaseLostError as error:
            logger.error("%s; this process ends", error)
            await leader.close()
            self._metrics.process.leader.set(0)
            self.failed = True
            self.ended.set()
        finally:
            resync.cancel()

    def _build_leader(self, client: Client, lists: JobLists, keys: list[Key]) -> Leader:
        """keys: jobs that exist; each has one pass before any gang gets a turn."""
        config = self._config
        settings = Settings(
            image=config.image,
            progress_seconds=config.progress_seconds,
            gpu_memory=config.gpu_memory,
            networks=config.networks,
            schedulers=config.schedulers,
            allow=config.allow,
        )
        reader = ProgressReader()
        reconciler = Reconciler(
            client, reader, settings, self._metrics, full_pass_seconds=config.resync_seconds, on_list=self._on_list
        )
        reconciler.turns.expect(keys)
        queue = KeyQueue(reconciler.reconcile, config.workers)
        self._metrics.process.set_sources(queue, self.watches.ages)
        return Leader(lists, reader, reconciler, queue, self._metrics, self._deliveries)

    def unhealthy_reason(self) -> str:
        """Why this process should be restarted; empty while it's healthy. A standby is healthy."""
        if self._started is None or self._started.lead.done() or (self._leader and not self._leader.is_alive):
            return "a task of the operator ended"
        if self._deliveries.is_stuck:
            return "the watch of dpojobs has not delivered what two passes over all jobs in a row have shown"
        return self.watches.unhealthy_reason()

    def on_job(self, raw: Mapping[str, Any], deleted: bool) -> None:
        """A DPOJob was added, changed or deleted."""
        metadata = raw["metadata"]
        key, version = key_of(metadata), str(metadata["resourceVersion"])
        self._delivered(names.KIND, metadata)
        self._deliveries.add(key, version)
        if deleted:
            self._deliveries.remove(key)
        if self._leader is not None:
            self._leader.on_job(key, version, None if deleted else raw)

    def on_child(self, kind: str, raw: Mapping[str, Any]) -> None:
        """A Job or pod of a DPOJob changed."""
        metadata = raw["metadata"]
        self._delivered(kind, metadata)
        name = names.job_of(raw)
        if self._leader is not None and name:
            self._leader.on_child(Key(str(metadata["namespace"]), name), str(metadata["resourceVersion"]))

    def _delivered(self, kind: str, metadata: Mapping[str, Any]) -> None:
        self.watches.delivered(self._stream(kind, str(metadata["namespace"])), str(metadata["resourceVersion"]))

    def _on_list(self, kind: str, namespace: str | None, items: Sequence[Json]) -> None:
        found = [raw["metadata"] for raw in items]
        if kind in WATCHED:
            # Foreign pods may carry some of our labels; the watch selects only objects with this label.
            found = [metadata for metadata in found if names.LABEL_JOB in (metadata.get("labels") or {})]
        versions = [str(metadata["resourceVersion"]) for metadata in found]
        self.watches.on_list(self._stream(kind, namespace), versions)

    def _stream(self, kind: str, namespace: str | None) -> Stream:
        return Stream(RESOURCES[kind].plural, namespace if self._config.namespaces else None)


def build_registry(operator: Operator) -> kopf.OperatorRegistry:
    """kopf handlers of one operator."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        access = await Access.load()
        session = access.open(response_class=tracking_response(operator.watches.on_activity))
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
        if reason := operator.unhealthy_reason():
            raise kopf.PermanentError(reason)
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
    """Run until the process is stopped. False when it has lost the leadership."""
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
