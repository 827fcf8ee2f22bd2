"""What the operator keeps of each job."""

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
    (info,) = [m for m in metrics.registry.collect() if m.name == "dpojob_info"]
    assert info.samples[0].labels["model"] == "org/model"
