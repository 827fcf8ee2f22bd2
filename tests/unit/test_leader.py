"""Work of the leader beside thousands of jobs: lists are read page by page, and what waits for nothing delays nobody."""

import asyncio
import gc
import weakref

import pytest
from kubernetes.aio.client.configuration import Configuration

from dpo_operator.builders.pod import TrainerImage
from dpo_operator.kube.access import Access
from dpo_operator.kube.client import Client
from dpo_operator.leader import JobLists, Leader, key_of
from dpo_operator.metrics.jobs import JobMetrics
from dpo_operator.planning.plan import Settings
from dpo_operator.queueing.key import Key
from dpo_operator.queueing.keys import KeyQueue
from dpo_operator.reconcile.deliveries import Deliveries
from dpo_operator.reconcile.progress_reader import ProgressReader
from dpo_operator.reconcile.reconciler import Reconciler

pytestmark = pytest.mark.unit

PAGES = 5


class Item(dict):
    """A job of a list, which tells whether somebody keeps it."""


class PagedClient(Client):
    """A client whose API server has PAGES pages of two jobs: one that has ended, and one that trains."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self.kept: list[weakref.ref[Item]] = []
        self.most = 0

    async def request(self, method, path, body=None, query=None):
        gc.collect()
        self.most = max(self.most, sum(1 for each in self.kept if each() is not None))
        number = int((query or {}).get("continue", "0"))
        items = [job(f"{state}-{number}", state) for state in ("Complete", "Training")]
        self.kept += [weakref.ref(item) for item in items]
        following = str(number + 1) if number + 1 < PAGES else ""
        return {"items": items, "metadata": {"continue": following}}


def job(name: str, state: str = "") -> Item:
    metadata = {"namespace": "team", "name": name, "uid": name, "resourceVersion": "7"}
    return Item(metadata=metadata, spec={}, status={"state": state} if state else {})


def scene(scenario):
    """Run a scenario with the client, its lists, a leader, and the keys in the order in which they are handled."""

    async def body():
        client = PagedClient(Access(Configuration()))
        metrics, deliveries, handled = JobMetrics(), Deliveries(), []
        lists = JobLists(client, (None,), metrics, lambda *_: None)

        async def handle(key):
            handled.append(key.name)

        queue = KeyQueue(handle, workers=1)
        settings = Settings(image=TrainerImage("t", "Always"))
        reconciler = Reconciler(client, ProgressReader(), settings, metrics)
        leader = Leader(lists, ProgressReader(), reconciler, queue, metrics, deliveries)
        try:
            await scenario(client, lists, leader, deliveries, handled)
        finally:
            await leader.close()
            await client.close()

    asyncio.run(body())


def test_no_more_than_two_pages_of_jobs_are_in_memory():
    async def scenario(client, lists, leader, deliveries, handled):
        await leader._resync()
        # The next page is asked for while the one before is still at hand.
        assert client.most <= 2
        assert len(client.kept) == 2 * PAGES

    scene(scenario)


def test_no_more_than_two_pages_of_pods_are_in_memory_at_the_start():
    async def scenario(client, lists, leader, deliveries, handled):
        assert await lists.keys_with_terminating_pods() == set()
        assert client.most <= 2
        assert len(client.kept) == 2 * PAGES

    scene(scenario)


def test_gangs_wait_for_no_job_that_has_ended():
    async def scenario(client, lists, leader, deliveries, handled):
        found = await lists.first_keys(deliveries)
        assert found == [Key("team", f"Training-{i}") for i in range(PAGES)]

    scene(scenario)


def test_a_new_job_is_not_behind_those_that_are_only_looked_at_again():
    async def scenario(client, lists, leader, deliveries, handled):
        await leader._resync()
        leader.on_job(Key("team", "ended"), "8", job("ended", "Failed"))
        running = job("runs", "Training")
        leader.on_job(key_of(running["metadata"]), "8", running)
        while len(handled) < 2 * PAGES + 2:
            await asyncio.sleep(0)
        assert handled[0] == "runs"
        assert handled.index("ended") == 2 * PAGES + 1

    scene(scenario)
