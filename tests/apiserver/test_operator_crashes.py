"""The operator dies before and after each of its writes, one job for each death, on a real API server.

All jobs run at the same time; every one has to end exactly like the job whose operator never died.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from dpo_operator.builders.pod import TrainerImage
from dpo_operator.kube.client import Client
from dpo_operator.metrics.jobs import JobMetrics
from dpo_operator.planning.plan import Settings
from dpo_operator.queueing.key import Key
from dpo_operator.reconcile.progress_reader import ProgressReader
from dpo_operator.reconcile.reconciler import Reconciler
from tests.apiserver.client import Requests
from tests.apiserver.hands import Hands
from tests.apiserver.scripted import ending, play_kubelet
from tests.cluster.rig.control_plane import ControlPlane

pytestmark = pytest.mark.apiserver

CRASHES = "operator-crashes"
# Writes of a life with one restart: 5 children and 2 more attempts, about twice as many statuses and events.
MOST_WRITES = 60
AT_ONCE = 40


class DeathError(BaseException):
    """The operator's process is gone; it handles this error no more than it would a SIGKILL."""


class MortalClient(Client):
    """A client whose process dies at one of its writes. at: number of the write, from 1; 0 for never."""

    at = 0
    after = False
    writes = 0

    async def request(self, method: str, path: str, body: Any = None, query: Any = None) -> dict[str, Any]:
        if method != "GET":
            self.writes += 1
            if self.writes == self.at and not self.after:
                raise DeathError
        answer = await super().request(method, path, body, query)
        if method != "GET" and self.writes == self.at and self.after:
            raise DeathError
        return answer


@pytest.fixture(scope="module")
def hands(control_plane: ControlPlane, dpojobs: Requests) -> Iterator[Hands]:
    control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": CRASHES}})
    before = os.environ.get("KUBECONFIG")
    os.environ["KUBECONFIG"] = str(control_plane.kubeconfig)
    yield Hands(dpojobs, CRASHES)
    if before is None:
        del os.environ["KUBECONFIG"]
    else:
        os.environ["KUBECONFIG"] = before


async def live(hands: Hands, name: str, at: int, after: bool) -> int:
    """One job from its creation to its end, with one death of the operator. Returns the number of writes."""
    hands.apply(name)
    client = await MortalClient.connect()
    client.at, client.after = at, after
    reader = ProgressReader()

    def newborn() -> Reconciler:
        return Reconciler(client, reader, Settings(TrainerImage("t:1")), JobMetrics(), full_pass_seconds=0)

    reconciler, key = newborn(), Key(hands.namespace, name)
    try:
        async with asyncio.timeout(600):
            while hands.status(name).get("state") not in ("Complete", "Failed"):
                try:
                    await reconciler.reconcile(key)
                except DeathError:
                    reconciler = newborn()
                play_kubelet(hands, name)
                await asyncio.sleep(0.1)
            # What is left to do after the end; the second pass is for the one that dies.
            for _ in range(2):
                with contextlib.suppress(DeathError):
                    await newborn().reconcile(key)
    finally:
        await reader.close()
        await client.close()
    return client.writes


# A death after a write leaves what one before the next write leaves; between them the operator only read. So CI has a death
# before the first write, and one after each.
@pytest.mark.fault(1)
@pytest.mark.parametrize("before", ["the first", pytest.param("each", marks=pytest.mark.exhaustive)])
def test_death_at_every_write_changes_nothing(hands: Hands, before: str) -> None:
    calm = f"crash-none-{before.split()[-1]}"

    async def scenario() -> tuple[int, list[str]]:
        writes = await live(hands, calm, 0, False)
        assert 20 < writes < MOST_WRITES
        if before == "each":
            deaths = [(at, False) for at in range(2, writes + 1)]
        else:
            deaths = [(1, False), *((at, True) for at in range(1, writes + 1))]
        turn = asyncio.Semaphore(AT_ONCE)
        jobs = []

        async def one(at: int, after: bool) -> None:
            async with turn:
                jobs.append(name := f"crash-{at}-{'after' if after else 'before'}")
                await live(hands, name, at, after)

        async with asyncio.TaskGroup() as group:
            for death in deaths:
                group.create_task(one(*death))
        return writes, jobs

    writes, jobs = asyncio.run(scenario())
    assert len(jobs) == writes + (1 if before == "the first" else -1)
    expected = ending(hands, calm)
    assert expected["state"] == "Complete"
    assert expected["restarts"] == (1, 1)
    different = {name: end for name in jobs if (end := ending(hands, name)) != expected}
    assert not different


class BrokenClient(Client):
    """A client with a defect that shows when pods are looked at."""

    async def list(self, kind: str, *args: Any, **options: Any) -> list[dict[str, Any]]:
        if kind == "Pod":
            raise KeyError("a defect")
        return await super().list(kind, *args, **options)


def test_an_error_of_its_own_is_told_on_the_job(hands: Hands) -> None:
    async def scenario() -> None:
        hands.apply("defect")
        client, reader = await BrokenClient.connect(), ProgressReader()
        reconciler = Reconciler(client, reader, Settings(TrainerImage("t:1")), JobMetrics(), full_pass_seconds=0)
        key = Key(hands.namespace, "defect")
        try:
            await reconciler.reconcile(key)
            for _ in range(3):
                with pytest.raises(KeyError):
                    await reconciler.reconcile(key)
        finally:
            await reader.close()
            await client.close()

    asyncio.run(scenario())
    path = f"{hands.path('events')}?fieldSelector=involvedObject.name=defect,reason=OperatorError"
    (event,) = hands.requests.send("GET", path).body["items"]
    assert event["type"] == "Warning"
    assert "KeyError: “'a defect'”" in event["message"]
