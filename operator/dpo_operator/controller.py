"""The operator's process: kopf watches and logs, a queue reconciles.

Handlers see only events, and only put the owning job's key on the queue. Handlers of other kinds (create, update,
timers, daemons) are not used: they add finalizers, with which a dead operator blocks deletions, and annotations.
"""

import asyncio
import logging
from typing import Any

import kopf
from prometheus_client import start_http_server

from dpo_operator.api import names
from dpo_operator.cluster.client import ApiError, Client
from dpo_operator.cluster.keys import Key, KeyQueue
from dpo_operator.cluster.progress import ProgressReader
from dpo_operator.cluster.reconcile import Reconciler
from dpo_operator.config import Config
from dpo_operator.metrics import JobMetrics
from dpo_operator.planning.plan import Settings

logger = logging.getLogger(__name__)

# A watch that says nothing, not even a bookmark (one a minute), is taken for dead.
SILENT_WATCH_SECONDS = 70.0
# Every watch is renewed by the server after this long, so that none lives on unnoticed in a broken connection.
WATCH_SECONDS = 300


class Operator:
    """What runs besides kopf: the queue with its workers, the periodic pass over all jobs, the metrics."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._metrics = JobMetrics()
        self._watched: dict[Key, str] = {}
        self._missed: dict[Key, str] = {}

    async def start(self) -> None:
        """Connect and begin. Raises kopf.PermanentError when the DPOJob resource is not installed."""
        self._client = await Client.connect()
        self._reader = ProgressReader()
        try:
            existing = await self._list()
        except ApiError as error:
            await self._client.close()
            if error.is_gone:
                raise kopf.PermanentError(
                    f"{names.PLURAL}.{names.GROUP} is not installed in this cluster; install the CRD and start again"
                ) from error
            raise kopf.TemporaryError(f"the API server refused to list {names.PLURAL}: {error}", delay=5) from error
        except (OSError, TimeoutError) as error:
            await self._client.close()
            raise kopf.TemporaryError(f"the API server does not answer: {error}", delay=3) from error
        settings = Settings(
            image=self._config.image,
            progress_seconds=self._config.progress_seconds,
            gpu_memory=self._config.gpu_memory,
            metrics_namespaces=self._config.metrics_namespaces,
            schedulers=self._config.schedulers,
        )
        self._reconciler = Reconciler(
            self._client, self._reader, settings, self._metrics, look_seconds=self._config.resync_seconds
        )
        self._reconciler.turns.expect(_key(raw["metadata"]) for raw in existing)
        self._reconciler.turns.wake = self.on_child
        self._queue = KeyQueue(self._reconciler.reconcile, self._config.workers)
        self._http, _ = start_http_server(self._config.metrics_port, registry=self._metrics.registry)
        self._resync = asyncio.create_task(self._resync_forever(), name="resync")

    async def stop(self) -> None:
        """Stop at once. Whatever was under way goes on from the cluster's state at the next start."""
        if not hasattr(self, "_resync"):
            return
        self._resync.cancel()
        await self._queue.close()
        await self._reader.close()
        await self._client.close()
        self._http.shutdown()
        self._http.server_close()

    @property
    def alive(self) -> bool:
        """Whether every task that must run for ever still runs."""
        return self._queue.alive and not self._resync.done()

    def on_job(self, key: Key, resource_version: str, deleted: bool) -> None:
        """A DPOJob was added, changed or deleted."""
        self._watched[key] = resource_version
        if deleted:
            self._watched.pop(key, None)
        if self._reconciler.changed(key, resource_version):
            self._queue.add(key)

    def on_child(self, key: Key) -> None:
        """A Job or pod of a DPOJob changed."""
        self._reconciler.changed(key)
        self._queue.add(key)

    async def _list(self) -> list[dict[str, Any]]:
        found = []
        for namespace in self._config.namespaces or (None,):
            found += await self._client.list(names.KIND, namespace)
        return found

    async def _resync_forever(self) -> None:
        while True:
            await asyncio.sleep(self._config.resync_seconds)
            try:
                with self._metrics.timed("resync"):
                    await self._resync_once()
            except Exception as error:
                # The next pass is the retry; this loop must not end.
                logger.warning("resync: %s", error or type(error).__name__)

    async def _resync_once(self) -> None:
        listed = {_key(raw["metadata"]): raw["metadata"]["resourceVersion"] for raw in await self._list()}
        for key in listed.keys() | self._reconciler.known():
            if key in listed and self._reconciler.is_settled(key, listed[key]):
                continue
            self._reconciler.changed(key)
            self._queue.add(key)
        missed = {key: version for key, version in listed.items() if self._watched.get(key) != version}
        # Between a write and its event some versions are always missing; twice the same one means a deaf watch.
        self._metrics.unobserved.set(sum(1 for key, version in missed.items() if self._missed.get(key) == version))
        self._missed = missed


def _key(metadata: Any) -> Key:
    return Key(str(metadata["namespace"]), str(metadata["name"]))


def build_registry(operator: Operator) -> kopf.OperatorRegistry:
    """kopf handlers of one operator."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # The same order as Client.connect; kopf's own login through the client library would load all of it.
        return kopf.login_with_kubeconfig(**kwargs) or kopf.login_with_service_account(**kwargs)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)
        await operator.start()

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await operator.stop()

    @kopf.on.probe(registry=registry, id="tasks")
    def probe(**_: Any) -> str:
        if not operator.alive:
            raise kopf.PermanentError("a task of the operator ended")
        return "alive"

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def job_event(event: Any, **_: Any) -> None:
        metadata = event["object"]["metadata"]
        operator.on_job(_key(metadata), str(metadata["resourceVersion"]), event["type"] == "DELETED")

    async def child_event(event: Any, **_: Any) -> None:
        metadata = event["object"]["metadata"]
        if name := metadata.get("labels", {}).get(names.LABEL_JOB):
            operator.on_child(Key(str(metadata["namespace"]), str(name)))

    kopf.on.event("batch", "v1", "jobs", registry=registry)(child_event)
    kopf.on.event("", "v1", "pods", registry=registry)(child_event)
    return registry


def configure(settings: kopf.OperatorSettings) -> None:
    """kopf as it's used here: watches that notice their death, and nothing written by kopf itself."""
    settings.posting.enabled = False
    # No lists and watches of namespaces and CRDs: those rights are not needed.
    settings.scanning.disabled = True
    settings.watching.inactivity_timeout = SILENT_WATCH_SECONDS
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 30
    settings.watching.connect_timeout = 10
    settings.watching.label_selectors["batch", "v1", "jobs"] = names.LABEL_JOB
    settings.watching.label_selectors["", "v1", "pods"] = names.LABEL_JOB
    settings.networking.request_timeout = 30


async def run(config: Config) -> None:
    """Run until a signal stops the process."""
    operator = Operator(config)
    await kopf.operator(
        registry=build_registry(operator),
        standalone=True,
        clusterwide=not config.namespaces,
        namespaces=config.namespaces,
        liveness_endpoint=f"http://0.0.0.0:{config.health_port}/healthz",
    )
