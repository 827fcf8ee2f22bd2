"""What happens around a run: the operator goes away, the job is deleted, the data are bad."""

import json
import time
from typing import Any

import pytest

from tests.cluster.scenario import RELEASE, SYSTEM_NAMESPACE, Job

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def leftovers(job: Job) -> list[str]:
    """Objects of the job that still exist."""
    found = job.cluster.kubectl(
        "get", "pods,jobs,services,configmaps,persistentvolumeclaims", "--namespace", job.namespace,
        "--selector", f"dpo-operator.dev/job={job.name}", "--output", "name",
    )  # fmt: skip
    return found.split()


def test_operator_goes_away(job: Job, spec: dict[str, Any]) -> None:
    """Deleted in mid-run it comes back and reports on; gone for good, it blocks no deletion."""
    job.apply(spec)
    job.wait_for_step(4)
    before = {pod["metadata"]["uid"] for pod in job.pods("train")}

    job.cluster.kubectl(
        "delete", "pod", "--namespace", SYSTEM_NAMESPACE, "--selector", f"app.kubernetes.io/instance={RELEASE}"
    )
    gone = time.monotonic()
    seen = job.status["progress"]["step"]
    job.wait(lambda s: s["progress"]["step"] > seen, "a newer step", timeout=30)
    delay = time.monotonic() - gone
    print(f"\noperator pod deleted → status goes on: {delay:.1f} s")
    assert delay <= 15
    pods = job.pods("train")
    assert {pod["metadata"]["uid"] for pod in pods} == before
    assert all(c["restartCount"] == 0 for pod in pods for c in pod["status"]["containerStatuses"])

    scale = (
        "scale",
        "deployment",
        "--namespace",
        SYSTEM_NAMESPACE,
        "--selector",
        f"app.kubernetes.io/instance={RELEASE}",
    )
    job.cluster.kubectl(*scale, "--replicas", "0")
    try:
        began = time.monotonic()
        job.cluster.kubectl("delete", "dpojob", job.name, "--namespace", job.namespace, timeout=30)
        while (left := leftovers(job)) and time.monotonic() - began < 60:
            time.sleep(1)
        print(f"DPOJob deleted without an operator → all gone: {time.monotonic() - began:.1f} s")
        assert left == []
    finally:
        job.cluster.kubectl(*scale, "--replicas", "1")


def test_bad_dataset(job: Job, spec: dict[str, Any]) -> None:
    """All eight odd rows get a reason, the job fails in prepare, and no pod ever asked for a GPU."""
    job.apply(spec | {"data": {"train": {"source": "pvc://inputs/hh/odd.jsonl"}, "maxLength": 256}})
    _, failed = job.wait_for_failure()
    assert failed["status"] == "True"
    assert failed["reason"] == "BadDataset"
    assert "row 0" in failed["message"]
    assert job.pods("train") == []
    dropped = [json.loads(line) for line in (job.work_folder() / "data" / "dropped.jsonl").read_text().splitlines()]
    assert sorted(row["row"] for row in dropped) == list(range(8))
    assert all(row["reason"] for row in dropped)
    shown = job.describe()
    assert "BadDataset" in shown
    assert "Warning" in shown


def test_volume_is_retained(job: Job, spec: dict[str, Any]) -> None:
    """retention Retain keeps the claim when the DPOJob goes; the default is to lose nothing."""
    volume = {"size": "1Gi", "retention": "Retain"}
    job.apply(spec | {"checkpoint": {"everySteps": 4, "volume": volume}})
    job.wait(lambda s: "volume" in s, "the volume")
    claim = job.status["volume"]["claimName"]
    job.delete()
    deadline = time.monotonic() + 60
    while (left := leftovers(job)) != [f"persistentvolumeclaim/{claim}"] and time.monotonic() < deadline:
        time.sleep(1)
    assert left == [f"persistentvolumeclaim/{claim}"]
    job.cluster.kubectl("delete", "pvc", claim, "--namespace", job.namespace, "--wait=false")


def test_what_is_not_implemented_is_said(job: Job, spec: dict[str, Any]) -> None:
    """A job that the API accepts and this version can't run fails with a condition, before any pod exists."""
    job.apply(spec | {"training": spec["training"] | {"offload": "nvme"}})
    _, failed = job.wait_for_failure(30)
    assert "spec.training.offload" in failed["message"]
    assert job.pods("prepare") == []
