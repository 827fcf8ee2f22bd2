"""What the operator keeps of each job."""

import time

import pytest

from dpo_operator.api import names
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.metrics.jobs import JobMetrics
from dpo_operator.queueing.key import Key
from dpo_operator.reconcile.memory import JobMemory, slim
from tests.unit.planning.build import a_job, a_view

pytestmark = pytest.mark.unit

LARGE = "x" * 200_000


def a_large_job() -> dict[str, object]:
    raw = a_job().model_dump(by_alias=True, mode="json", exclude_none=True)
    raw["metadata"] |= {
        "resourceVersion": "7",
        "managedFields": [{"manager": LARGE}],
        "labels": {"mine": LARGE},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": LARGE, names.ANNOTATION_RETRY: "once"},
    }
    return raw


def test_nothing_that_is_not_read_is_kept():
    raw = a_large_job()
    kept = slim(raw)
    assert LARGE not in repr(kept)
    assert kept["metadata"]["annotations"] == {names.ANNOTATION_RETRY: "once"}
    assert kept["spec"] == raw["spec"]
    # What came from the watch is not changed.
    assert LARGE in repr(raw)


def test_of_a_job_that_ended_only_what_tells_a_change_is_kept():
    raw = slim(a_large_job()) | {"status": {"state": "Failed", "message": LARGE}}
    memory = JobMemory(raw=raw, seen=a_view(refused=LARGE), event_object=raw)
    memory.parsed.job(raw)
    memory.rest("Failed")
    assert memory.raw == {"metadata": {"resourceVersion": "7"}, "status": {"state": "Failed"}}
    assert len(repr(memory)) < 5000


def test_metrics_keep_no_spec():
    metrics, raw = JobMetrics(), a_large_job()
    raw["spec"]["data"]["filters"] = {"where": [{"column": "a", "values": [LARGE]}]}
    key = Key("ns", "pairs")
    metrics.update(key, raw, DPOJobStatus())
    assert LARGE not in repr(metrics._jobs[key])
    assert 'model="org/model"' in metrics.render().decode()


PASS_SECONDS = 30.0


def looked_at(state: str, *, due_in: float | None = None, version: str = "7", **more: object) -> JobMemory:
    raw = {"metadata": {"resourceVersion": version}, "status": {"state": state}}
    memory = JobMemory(raw=raw, dirty=False, looked_at=time.monotonic(), **more)
    memory.is_due_in(due_in)
    return memory


@pytest.mark.parametrize(
    ("state", "due_in"),
    [
        ("Complete", None),
        # It is deleted for its age in a week, and nothing is to be done before.
        ("Complete", 600_000.0),
        ("Suspended", None),
        # Its own timer brings the next pass.
        ("Training", 3.0),
    ],
)
def test_a_job_that_waits_for_nothing_needs_no_periodic_pass(state, due_in):
    memory = looked_at(state, due_in=due_in)
    assert memory.is_settled("7", PASS_SECONDS)
    assert not memory.is_settled("8", PASS_SECONDS)
    memory.dirty = True
    assert not memory.is_settled("7", PASS_SECONDS)


@pytest.mark.parametrize(
    "memory",
    [
        looked_at("Complete", due_in=-1.0),
        looked_at("Suspended", versions=frozenset({"5"})),
        looked_at("Training"),
        looked_at("Training", due_in=-1.0),
        JobMemory(),
    ],
)
def test_a_job_that_is_due_or_has_pods_gets_its_periodic_pass(memory):
    assert not memory.is_settled("7", PASS_SECONDS)


def test_a_last_full_pass_long_ago_is_repeated():
    memory = looked_at("Training", due_in=60.0)
    memory.looked_at -= PASS_SECONDS + 1
    assert not memory.is_settled("7", PASS_SECONDS)
    assert not memory.idle


def test_only_jobs_at_rest_are_forgotten_in_part():
    assert looked_at("Complete", due_in=600_000.0).idle
    assert looked_at("Suspended").idle
    assert not looked_at("Training", due_in=3.0).idle
