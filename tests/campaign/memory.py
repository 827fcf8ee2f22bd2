"""The engine in process: the operator's own code over an API server in memory, in virtual time.

Real: Operator, Leader, Lease, the queue, the Reconciler and the client with all its reading of answers. Imitated: kopf's watches (list,
watch, retry, list again after 410), connections, the API server and the kubelets. Import it after clock.install().
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any
from unittest import mock
from urllib.parse import urlencode

import aiohttp
import kopf
from yarl import URL

from dpo_operator import controller
from dpo_operator.api import names
from dpo_operator.api.allowed.allow import Allow
from dpo_operator.builders.pod import TrainerImage
from dpo_operator.config import Config, Election
from dpo_operator.kopf_settings import SILENT_WATCH_SECONDS, WATCH_SECONDS, Backoffs
from dpo_operator.kube.access import Access
from tests.campaign import clock
from tests.campaign.api import EPOCH, RefusedError, Target
from tests.campaign.faults import DEATHS, WATCHES, Armed, Events, Plan, answer
from tests.campaign.invariants import Life
from tests.campaign.world import JOB, NAMESPACE, TICK_SECONDS, World

logger = logging.getLogger(__name__)

Json = dict[str, Any]
SERVER = "http://api"
LEASE_SECONDS = 12.0
BOOKMARK_SECONDS = 60.0
# The liveness probe of the chart.
PROBE_SECONDS, PROBE_FAILURES = 10.0, 3
# Virtual seconds that a life may take, and more for each fault: a silent watch is found after 70 s, and then looked for again.
LONGEST_SECONDS, LONGEST_FOR_A_FAULT = 120.0, 240.0
STREAMS = {
    names.PLURAL: (f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/{names.PLURAL}", ""),
    "jobs": (f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", names.LABEL_JOB),
    "pods": (f"/api/v1/namespaces/{NAMESPACE}/pods", names.LABEL_JOB),
}


EVERYTHING = Allow.model_validate(
    {name: ["*"] for name in ("images", "tolerations", "priorityClasses", "runtimeClasses", "nodeSelectors", "env")}
)


# Threads and sockets have no place in virtual time.
mock.patch.object(controller, "MetricsServer").start()


@dataclass
class Answer:
    """status, headers and body of an HTTP response. cut: the connection breaks off in the middle of the body."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool = False

    async def read(self) -> bytes:
        if self.cut:
            raise aiohttp.ClientPayloadError("Response payload is not completed")
        return self.body


@dataclass
class Network:
    """What is between the operators and the API server: it does what the plan says."""

    world: World
    armed: Armed
    watchers: list["Watcher"] = field(default_factory=list)
    _answers: dict[str, list[bytes]] = field(default_factory=dict)
    _late: set["asyncio.Task[Any]"] = field(default_factory=set)

    async def request(self, session: "Session", method: str, url: str, body: bytes | None) -> Answer:
        """One request, as long as its process lives."""
        path = url.partition("?")[0]
        await session.lives()
        lease = "/leases" in path
        olds = [old for old in self._answers.get(url, ()) if old != self._answers[url][-1]]
        found = self.armed.next(method, watch="watch=true" in url, lease=lease, remembered=bool(olds))
        if found is None:
            # The process may do other things meanwhile.
            await asyncio.sleep(0.001)
            await session.lives()
            return self._carry_out(method, url, body)
        index, kind = found
        chance = self.armed.plan.chance(index)
        if kind in DEATHS:
            if kind == "death-after":
                self._carry_out(method, url, body)
            session.die(chance.choice((2.0, 30.0)))
        await session.lives()
        if kind in WATCHES:
            for watcher in self.watchers:
                watcher.fault(kind)
            kind = ""
        match kind:
            case "drop":
                raise aiohttp.ServerDisconnectedError
            case "delay":
                seconds = chance.choice((2.0, 35.0))
                # It is carried out after its sender has given up.
                task = asyncio.create_task(self._later(seconds, method, url, body))
                self._late.add(task)
                return await asyncio.shield(task)
            case "lost":
                self._carry_out(method, url, body)
                raise aiohttp.ServerDisconnectedError
            case "late":
                done = self._carry_out(method, url, body)
                await asyncio.sleep(32.0)
                return done
            case "duplicate":
                self._carry_out(method, url, body)
                return self._carry_out(method, url, body)
            case "truncated":
                done = self._carry_out(method, url, body)
                half = done.body[: len(done.body) // 2]
                return Answer(done.status, done.headers, half, cut=chance.random() < 0.5)
            case "old":
                return Answer(200, {}, chance.choice(olds))
            case "outsider":
                self._interfere(url, index)
                return self._carry_out(method, url, body)
            case "":
                return self._carry_out(method, url, body)
        return Answer(*answer(kind, method, path))

    async def _later(self, seconds: float, method: str, url: str, body: bytes | None) -> Answer:
        await asyncio.sleep(seconds)
        return self._carry_out(method, url, body)

    def _carry_out(self, method: str, url: str, body: bytes | None) -> Answer:
        date = format_datetime(datetime.fromtimestamp(EPOCH + time.monotonic(), UTC), usegmt=True)
        try:
            text = json.dumps(self.world.api.handle(method, url, body)).encode()
        except RefusedError as error:
            return Answer(error.code, {"Date": date}, json.dumps(error.body).encode())
        if method == "GET":
            known = self._answers.setdefault(url, [])
            if not known or known[-1] != text:
                known.append(text)
        return Answer(201 if method == "POST" else 200, {"Date": date}, text)

    def _interfere(self, url: str, index: int) -> None:
        """Somebody sets an annotation, on the DPOJob when the object does not exist yet."""
        target = Target.of(url)
        key = (target.plural, target.name) if target.name else (names.PLURAL, JOB)
        if key in self.world.api.objects:
            self.world.api.change(*key, {"metadata": {"annotations": {"example.org/touched": str(index)}}})


class Session:
    """What the operator takes for aiohttp's session, for one life of its process; once that is dead, nothing happens."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.over = asyncio.Event()
        self.away_seconds = 1.0
        self._hooks: list[aiohttp.TraceConfig] = []

    def die(self, away_seconds: float = 1.0) -> None:
        """away_seconds: until the process is started again."""
        self.away_seconds = away_seconds
        self.over.set()

    async def lives(self) -> None:
        """Return only as long as the process lives."""
        if self.over.is_set():
            await asyncio.Event().wait()

    @asynccontextmanager
    async def request(
        self, method: str, url: str, *, data: bytes | None, params: Json | None, headers: Any, trace_request_ctx: Any
    ) -> AsyncIterator[Answer]:
        """As aiohttp.ClientSession.request."""
        for hooks in self._hooks:
            await hooks.on_connection_reuseconn.send(None, SimpleNamespace(trace_request_ctx=trace_request_ctx), None)
        full = url.removeprefix(SERVER) + (f"?{urlencode(params)}" if params else "")
        yield await self.network.request(self, method, full, data)

    async def close(self) -> None:
        """As aiohttp.ClientSession.close."""

    # As Access

    server = SERVER

    def open(self, *, trace_configs: list[aiohttp.TraceConfig]) -> "Session":
        """Another session of the same process."""
        opened = Session(self.network)
        opened.over, opened.die = self.over, self.die  # type: ignore[method-assign]
        for hooks in trace_configs:
            hooks.freeze()
        opened._hooks = trace_configs
        return opened

    async def reload(self) -> bool:
        """Credentials are never rejected."""
        return False


@dataclass
class Process:
    """One replica, which is started again when it has ended. name: of its pod."""

    name: str
    network: Network
    election: Election | None

    async def live(self) -> None:
        """Until cancelled: start, work, end."""
        while True:
            session = Session(self.network)
            operator = controller.Operator(self._config())
            tasks = [asyncio.create_task(self._work(session, operator))]
            over = asyncio.create_task(session.over.wait())
            await asyncio.wait({over, tasks[0]}, return_when=asyncio.FIRST_COMPLETED)
            session.die(session.away_seconds)
            self.network.watchers[:] = [w for w in self.network.watchers if w.session is not session]
            if operator._started is not None:
                tasks.append(operator._started.lead)
            for task in tasks:
                task.cancel()
            if operator._leader is not None:
                await operator._leader.close()
            await asyncio.wait(tasks)
            if not tasks[0].cancelled() and (error := tasks[0].exception()) is not None:
                logger.error("%s ended", self.name, exc_info=error)
            await asyncio.sleep(session.away_seconds)

    def _config(self) -> Config:
        return Config(TrainerImage("t:1"), namespaces=(NAMESPACE,), allow=EVERYTHING, election=self.election)

    async def _work(self, session: Session, operator: controller.Operator) -> None:
        """As kopf and the kubelet do: start until it succeeds, watch, ask whether it is healthy."""
        backoffs = iter(Backoffs())
        while operator._started is None:
            Access.load = _loading(session)  # type: ignore[method-assign]
            try:
                await operator.start()
            except kopf.TemporaryError:
                await asyncio.sleep(next(backoffs))
        async with asyncio.TaskGroup() as group:
            for plural in STREAMS:
                watcher = Watcher(session, operator, plural)
                self.network.watchers.append(watcher)
                group.create_task(watcher.run())
            group.create_task(self._probe(session, operator))

    async def _probe(self, session: Session, operator: controller.Operator) -> None:
        failures = 0
        while failures < PROBE_FAILURES:
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS):
                    await operator.ended.wait()
                break
            failures = failures + 1 if operator.unhealthy_reason() else 0
        session.die()


def _loading(session: Session) -> Callable[[], Coroutine[Any, Any, Any]]:
    async def load() -> Session:
        return session

    return load


class Watcher:
    """One of kopf's watches: list, watch from there, retry errors, list again after 410 Gone, open silent ones again."""

    def __init__(self, session: Session, operator: controller.Operator, plural: str) -> None:
        self.session = session
        self._operator = operator
        self._plural = plural
        self._path, self._selector = STREAMS[plural]
        self._events = Events()
        self._woken = asyncio.Event()

    def fault(self, kind: str) -> None:
        """Do this to the open watch."""
        self._events.fault(kind)
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled."""
        backoffs, since = iter(Backoffs()), ""
        while True:
            try:
                if not since:
                    since = await self._list()
                since = await self._watch(since)
                backoffs = iter(Backoffs())
            except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError):
                await asyncio.sleep(next(backoffs))

    def _url(self, **query: str) -> str:
        query = {"labelSelector": self._selector} | query if self._selector else query
        return f"{self._path}?{urlencode(query)}" if query else self._path

    async def _ask(self, url: str) -> Json:
        async with asyncio.timeout(30):
            answer = await self.session.network.request(self.session, "GET", url, None)
            self._operator.watches.on_activity(URL(SERVER + url), answer.status)
            if answer.status != 200:
                raise aiohttp.ClientError(str(answer.status))
            found: Json = json.loads(await answer.read())
            return found

    async def _list(self) -> str:
        found = await self._ask(self._url())
        for raw in found["items"]:
            self._deliver({"type": None, "object": raw})
        return str(found["metadata"]["resourceVersion"])

    async def _watch(self, since: str) -> str:
        """Deliver events until the watch ends. Returns where the next begins; empty: with a list."""
        url = self._url(watch="true", resourceVersion=since)
        answer = await self.session.network.request(self.session, "GET", url, None)
        self._operator.watches.on_activity(URL(SERVER + url), answer.status)
        if answer.status == 410:
            return ""
        if answer.status != 200:
            raise aiohttp.ClientError(str(answer.status))
        self._events = Events()
        api = self.session.network.world.api
        opened = api.watch(url)
        ends = time.monotonic() + WATCH_SECONDS
        try:
            while time.monotonic() < ends:
                event = await self._next(opened.events)
                await self.session.lives()
                if self._events.gone:
                    return ""
                if self._events.cut:
                    raise aiohttp.ClientError("cut")
                if self._events.silent:
                    await asyncio.sleep(SILENT_WATCH_SECONDS)
                    return since
                self._operator.watches.on_activity(URL(SERVER + url), 200)
                if event is not None:
                    since = str(event["object"]["metadata"]["resourceVersion"])
                    for each in self._events.of(event):
                        self._deliver(each)
            return since
        finally:
            api.close(opened)

    async def _next(self, events: "asyncio.Queue[Json]") -> Json | None:
        """The next event; None for a bookmark and for a fault that needs none."""
        if not events.empty():
            await asyncio.sleep(0.001)
            return events.get_nowait()
        self._woken.clear()
        got, woken = asyncio.create_task(events.get()), asyncio.create_task(self._woken.wait())
        try:
            await asyncio.wait({got, woken}, timeout=BOOKMARK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            return got.result() if got.done() else None
        finally:
            got.cancel()
            woken.cancel()

    def _deliver(self, event: Json) -> None:
        if self._plural == names.PLURAL:
            self._operator.on_job(event["object"], event["type"] == "DELETED")
        else:
            self._operator.on_child(event["object"]["kind"], event["object"])


async def _live(plan: Plan) -> tuple[Life, list[tuple[int, str]]]:
    world = World()
    network = Network(world, Armed(plan))
    elections = [Election(NAMESPACE, "lease", f"pod-{i}", LEASE_SECONDS) for i in range(2)]
    processes = [Process("pod-0", network, None)]
    if plan.replicas == 2:
        processes = [Process(e.identity, network, e) for e in elections]
    began = time.monotonic()
    running = [asyncio.create_task(process.live()) for process in processes]
    limit = LONGEST_SECONDS + LONGEST_FOR_A_FAULT * len(plan.faults)
    ending: Json = {}
    overdue = ""
    try:
        await asyncio.sleep(2.0)
        world.begin()
        if not await _until(world, lambda: _may_delete(world, plan), limit):
            overdue = f"not at its end after {limit:.0f} s: {world.status.get('phase')}, {world.status.get('message')}"
        # What still happens after the end.
        await _until(world, lambda: False, 5.0)
        ending = world.ending() if plan.life == "whole" else {}
        seconds = time.monotonic() - began
        if world.job is not None:
            world.api.remove(names.PLURAL, JOB)
        await _until(world, lambda: False, 10.0)
        requests = network.armed.requests
        # An operator that knows nothing of the deletion would have made something again by then.
        await _until(world, lambda: False, 50.0)
        for task in running:
            if task.done():
                task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)
    life = world.life(ending)
    life.requests, life.seconds, life.overdue = requests, seconds, overdue
    return life, network.armed.happened


def _may_delete(world: World, plan: Plan) -> bool:
    """Whether a life is at its end, or where it is to be cut short."""
    if plan.life == "whole":
        return world.status.get("state") in ("Complete", "Failed")
    return any(
        p["metadata"]["name"].startswith(f"{JOB}-train-1")
        for p in world.own("pods")
        if p["status"]["phase"] == "Running"
    )


async def _until(world: World, look: Callable[[], bool], seconds: float) -> bool:
    """Let the cluster work until something is so; False after so many virtual seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if look():
            return True
        world.tick()
        await asyncio.sleep(TICK_SECONDS)
    return False


def live(plan: Plan) -> tuple[Life, list[tuple[int, str]]]:
    """One life with these faults, and those that happened."""
    return clock.run(_live(plan))
