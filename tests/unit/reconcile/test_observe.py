"""What a pass reads of a job."""

import asyncio
import time

import pytest
from kubernetes.aio.client.configuration import Configuration

from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.kube.access import Access
from dpo_operator.kube.client import Client
from dpo_operator.reconcile.memory import ChildObjects, JobMemory
from dpo_operator.reconcile.observe import observe
from tests.unit.planning.build import a_claim, a_job

pytestmark = pytest.mark.unit


class Asked(Client):
    """A client that notes what it is asked for, of a cluster in which nothing is."""

    def __init__(self) -> None:
        super().__init__(Access(Configuration()))
        self.plurals: list[str] = []

    async def request(self, method, path, body=None, query=None):
        parts = path.split("/")
        self.plurals.append(parts[parts.index("namespaces") + 2])
        return {"items": [], "metadata": {"name": "one", "uid": "one"}, "spec": {}, "status": {"phase": "Bound"}}


def reads_of(state: State, memory: JobMemory | None = None, max_age: float = 0.0) -> list[str]:
    async def body():
        client = Asked()
        status = DPOJobStatus(state=state, phase="export")
        try:
            await observe(client, a_job(), status, memory or JobMemory(), max_age=max_age, on_list=lambda *_: None)
        finally:
            await client.close()
        return sorted(client.plurals)

    return asyncio.run(body())


def test_a_complete_job_costs_two_reads():
    assert reads_of(State.COMPLETE) == ["jobs", "pods"]


@pytest.mark.parametrize("state", [State.TRAINING, State.FAILED])
def test_a_job_that_may_run_again_is_read_with_its_claim(state):
    assert reads_of(state) == ["configmaps", "jobs", "persistentvolumeclaims", "pods", "services"]


@pytest.mark.parametrize(
    ("seconds_ago", "expected"),
    [
        (10.0, []),
        (60.0, ["persistentvolumeclaims"]),
        (400.0, ["configmaps", "persistentvolumeclaims", "services"]),
    ],
)
def test_of_a_running_attempt_the_claim_is_read_oftener_than_the_rest(seconds_ago, expected):
    at = time.monotonic() - seconds_ago
    memory = JobMemory(child_objects=ChildObjects(a_claim(), (), at, at))
    assert reads_of(State.TRAINING, memory, 30.0) == sorted(["jobs", "pods", *expected])
    # The claim has just been read.
    assert reads_of(State.TRAINING, memory, 30.0) == ["jobs", "pods"]


def test_before_an_attempt_all_is_read():
    memory = JobMemory(child_objects=ChildObjects(a_claim(), (), time.monotonic(), time.monotonic()))
    assert len(reads_of(State.TRAINING, memory)) == 5
