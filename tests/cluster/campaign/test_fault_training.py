"""What goes wrong inside training while every pod is well: silence, a slow rank, numbers that are not finite, bad rows."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api import names
from tests.cluster.rig.cluster import Cluster
from tests.cluster.rig.node import processes_beside
from tests.cluster.rig.shell import wait_for
from tests.cluster.scenario import INPUTS_CLAIM, Job, training_records
from tests.cluster.witness import witness
from tests.crowd import crowd

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(900)]

Spec = dict[str, Any]
HANG_SECONDS = 20
STEPS = 130


def longer(spec: Spec) -> Spec:
    """Training that goes on for minutes, in which a hang would soon be noticed."""
    training = spec["training"] | {"maxSteps": STEPS}
    return spec | {
        "training": training,
        "evaluation": {"everySteps": STEPS},
        "failurePolicy": {"hangTimeoutSeconds": HANG_SECONDS},
        "checkpoint": spec["checkpoint"] | {"everySteps": 100},
    }


def events(job: Job) -> list[str]:
    found = job.cluster.get(
        "events", "--namespace", job.namespace, "--field-selector", f"involvedObject.name={job.name}"
    )
    return [event["reason"] for event in found["items"]]


def check_that_nothing_restarted(job: Job) -> None:
    """A to G for a fault that is only told of: one attempt, each step once, the volume as it was."""
    status = job.wait_for_state("Complete", 400)
    assert (status["restarts"], status["attempts"]["train"], status["finalMetrics"]["step"]) == (0, 1, STEPS)
    records = job.metrics()
    assert max(records) == STEPS
    assert all(math.isfinite(record["loss"]) for record in records.values())
    assert job.cluster.get("pvc", f"{job.name}-work")["metadata"]["uid"] == status["volume"]["claimUid"]


@pytest.mark.fault(35)
def test_rank_0_is_silent_while_training_goes_on(job: Job, spec: Spec) -> None:
    """Nobody can ask its pod any more; the other rank tells how far they are."""
    with witness(job):
        job.apply(longer(spec))
        job.wait_for_step(5)
        (first, _) = job.pods("train")
        pid = job.cluster.container_pid(first["metadata"]["name"])
        node = job.cluster.node(first["spec"]["nodeName"])
        node.enter_network(
            pid, "iptables", "-I", "INPUT", "-p", "tcp", "--dport", str(names.METRICS_PORT), "-j", "DROP"
        )
        begun, step = time.monotonic(), job.status["progress"]["step"]
        wait_for("the warning", lambda: "HeartbeatSilent" in events(job), timeout=90, every=1)
        told = time.monotonic() - begun
        print(f"\nrank 0 silent → said: {told:.0f} s")
        assert told > HANG_SECONDS, "a hang would have been noticed meanwhile"
        assert job.status["progress"]["step"] > step
        assert job.status["state"] == "Training"
        check_that_nothing_restarted(job)


def pin(job: Job, pod: dict[str, Any], core: int) -> None:
    """All threads of a pod's container on one core."""
    for pid in processes_beside(job.cluster.container_pid(pod["metadata"]["name"])):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), [core])


@pytest.mark.fault(36)
def test_one_rank_is_much_slower(job: Job, spec: Spec) -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    with witness(job):
        job.apply(longer(spec))
        job.wait_for_step(5)
        fast, slow = job.pods("train")
        pin(job, fast, first)
        pin(job, slow, second)
        with crowd(second, 4):
            begun = time.monotonic()
            wait_for("the warning", lambda: "Straggler" in events(job), timeout=180, every=1)
            print(f"\na rank is slow → said: {time.monotonic() - begun:.0f} s")
            found = job.status["straggler"]
        assert (found["rank"], found["node"]) == (1, slow["spec"]["nodeName"])
        assert found["pod"] == slow["metadata"]["name"]
        check_that_nothing_restarted(job)


@pytest.mark.fault(38)
def test_numbers_are_not_finite(job: Job, spec: Spec) -> None:
    """Weights that grow tenfold with each step until float32 ends: rolled back, and then the job fails without a restart."""
    training = spec["training"] | {"learningRate": 1.0, "weightDecay": 10.0, "warmupRatio": 0.0}
    training |= {"nonFinite": {"action": "rollback", "max": 2}}
    with witness(job) as seen:
        job.apply(spec | {"training": training, "checkpoint": spec["checkpoint"] | {"everySteps": 1}})
        status, failed = job.wait_for_failure(300)
    assert failed["reason"] == "NonFiniteLoss", failed
    assert (status["restarts"], status["attempts"]["train"], status["attempts"]["export"]) == (0, 1, 0)
    assert len(seen.lives()) == 2
    assert {"NonFiniteLoss"} <= set(events(job))
    check_that_checkpoints_are_finite(job.work_folder())
    lines = [json.loads(line) for line in (job.work_folder() / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if line.get("loss", 0) is None], "a step that was left out"


def check_that_checkpoints_are_finite(work: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file

    shards = list((work / "checkpoints").glob("step-????????/rank-*.safetensors"))
    assert shards
    for shard in shards:
        for name, tensor in load_file(shard).items():
            assert np.isfinite(tensor).all(), f"{shard.name}: {name}"


@pytest.fixture
def worse_data(installed: Cluster, shared: Path) -> str:
    """A source whose every fifth row is bad."""
    folder = installed.layout.volumes / f"{INPUTS_CLAIM}-default" / "worse"
    folder.mkdir(exist_ok=True)
    rows = (shared / "data" / "hh_helpful_base" / "train.jsonl").read_text().splitlines()[:320]
    rows[4::5] = ['{"prompt": "half a row'] * len(rows[4::5])
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "train.jsonl").chmod(0o644)
    folder.chmod(0o755)
    return f"pvc://{INPUTS_CLAIM}/worse/train.jsonl"


@pytest.mark.fault(39)
def test_rows_are_bad(job: Job, spec: Spec, worse_data: str) -> None:
    """More of them than may be: the job fails in prepare. As many as may be: they are counted, and the rest is trained on."""
    data = spec["data"] | {"train": {"source": worse_data}}
    job.apply(spec | {"data": data})
    status, failed = job.wait_for_failure(120)
    assert failed["reason"] == "BadDataset"
    assert "train.jsonl" in failed["message"]
    assert (status["restarts"], status["attempts"]["train"], job.pods("train")) == (0, 0, [])
    job.delete()
    job.cluster.refill_volumes()
    filters = {"filters": {"maxBadRows": 0.25}}
    job.apply(spec | {"data": data | filters})
    status = job.wait_for_state("Complete")
    assert sum(status["dataset"]["dropped"].values()) == status["dataset"]["droppedRows"] >= 64
    assert status["dataset"]["trainPairs"] <= 256
    assert status["restarts"] == 0
    assert training_records(job.work_folder() / "metrics.jsonl")
