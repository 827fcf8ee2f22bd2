"""A DPOJob from apply to export, on two nodes; then the same job with a rank killed in the middle."""

import json
import signal
import time
import urllib.request
from datetime import datetime
from typing import Any

import pytest
import yaml

from dpo_operator.generate.dashboards import dashboard_queries, operator_queries
from tests.cluster import scenario
from tests.cluster.scenario import Job
from tests.contract.alerts.replay import rules

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

LN_2 = 0.693147
PARAMETERS = 260_032
FIRST_METRICS = (
    'dpo_train_loss{{dpojob="{name}"}}',
    'dpo_train_reward{{dpojob="{name}",response="chosen"}}',
    'dpo_train_reward{{dpojob="{name}",response="rejected"}}',
    'dpo_train_reward_margin{{dpojob="{name}"}}',
    'dpo_train_reward_accuracy_ratio{{dpojob="{name}"}}',
)


@pytest.fixture
def spec(spec: dict[str, Any]) -> dict[str, Any]:
    """Half of the job that other tests stop in the middle, because these train to the end: 16 optimizer steps."""
    train = spec["data"]["train"] | {"limit": 128}
    return spec | {"data": spec["data"] | {"train": train}}


@pytest.fixture(scope="module")
def undisturbed() -> dict[int, dict[str, float]]:
    """Training records of the job that nothing happened to, filled by the first test."""
    return {}


def test_end_to_end(job: Job, spec: dict[str, Any], undisturbed: dict[int, dict[str, float]]) -> None:
    load_rules(job)
    job.apply(spec)
    job.wait_for_step(8)

    pods = job.pods("train")
    assert [pod["metadata"]["labels"]["dpo-operator.dev/attempt"] for pod in pods] == ["1", "1"]
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
    assert {pod["spec"]["nodeName"] for pod in pods} == {"n2", "n3"}
    status = job.status
    assert status["workers"] == {"desired": 2, "started": 2}
    assert float(status["progress"]["loss"]) > 0

    for query in FIRST_METRICS:
        assert job.cluster.prometheus_query(query.format(name=job.name)), f"no data for {query}"
    # This job has no rounds and no sweep.
    queries = [
        query
        for query in dashboard_queries(job.namespace, job.name)
        if "dpojob_round" not in query and "dpojob_leg" not in query
    ]
    empty = unanswered(job, [*queries, *operator_queries()])
    assert not empty, "panels without data: " + "\n".join(empty)

    health = {rule["name"]: (rule["health"], rule.get("lastError")) for rule in loaded_rules(job)}
    assert len(health) == sum(len(group["rules"]) for group in rules()["groups"])
    assert set(health.values()) == {("ok", None)}

    status = job.wait_for_state("Complete")
    fired = job.cluster.prometheus_query(f'max_over_time(ALERTS{{alertstate="firing",dpojob="{job.name}"}}[1h])')
    assert not fired, "a healthy job raises alerts"
    assert status["restarts"] == 0
    assert {c["type"]: c["status"] for c in status["conditions"]}["Complete"] == "True"
    assert status["dataset"]["trainPairs"] > 100

    records = job.metrics()
    undisturbed.update(records)
    assert len(records) == max(records) >= 15
    assert records[1]["loss"] == pytest.approx(LN_2, abs=1e-4)
    assert records[1]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    held = scenario.shares(job.work_folder())
    assert len(held) == 2
    assert sum(held) >= PARAMETERS
    assert max(held) < 0.6 * PARAMETERS
    assert scenario.export_difference(job.work_folder(), job.work_folder() / status["export"]["path"]) <= 1e-4
    assert "reward margin" in (job.work_folder() / "report" / "report.txt").read_text()
    assert (job.work_folder() / "report" / "report.png").read_bytes().startswith(b"\x89PNG")


def load_rules(job: Job) -> None:
    """Give Prometheus the rules that the chart ships."""
    (job.cluster.rules / "chart.yaml").write_text(yaml.safe_dump(rules()))
    job.cluster.reload_prometheus()


def loaded_rules(job: Job) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{job.cluster.prometheus_url}/api/v1/rules", timeout=10) as answer:
        return [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]


def unanswered(job: Job, queries: list[str], patience: float = 30) -> list[str]:
    """Queries that return no data within some seconds of scraping."""
    deadline = time.monotonic() + patience
    while True:
        empty = [query for query in queries if not job.cluster.prometheus_query(query)]
        if not empty or time.monotonic() > deadline:
            return empty
        time.sleep(2)


def test_killed_rank(job: Job, spec: dict[str, Any], undisturbed: dict[int, dict[str, float]]) -> None:
    job.apply(spec)
    job.wait_for_checkpoint(8)
    before = {pod["metadata"]["uid"] for pod in job.pods("train")}

    killed = time.time()
    job.cluster.signal_pod(job.pods("train")[1]["metadata"]["name"], signal.SIGKILL)
    status = job.wait(lambda s: s.get("attempts", {}).get("train") == 2, "attempt 2")
    resumed = job.wait(
        lambda s: (
            s["progress"].get("attempt") == 2 and s["progress"]["step"] > (s["progress"].get("resumedFromStep") or 0)
        ),
        "a step of attempt 2",
    )
    back = datetime.fromisoformat(resumed["progress"]["updatedTime"]).timestamp() - killed
    print(f"\nkill of a rank → next finished step seen: {back:.1f} s")

    after = job.pods("train")
    assert len(after) == 2
    assert not before & {pod["metadata"]["uid"] for pod in after}
    assert {pod["metadata"]["labels"]["dpo-operator.dev/attempt"] for pod in after} == {"2"}
    assert status["restarts"] == 1
    committed = resumed["progress"]["resumedFromStep"]
    assert committed >= 8
    assert committed % 4 == 0

    status = job.wait_for_state("Complete")
    assert status["restarts"] == 1
    assert status["restartHistory"][0]["reason"] in ("Killed", "OOMKilled")
    records = job.metrics()
    assert set(records) == set(undisturbed)
    for step, record in undisturbed.items():
        assert records[step]["loss"] == pytest.approx(record["loss"], abs=1e-4), f"step {step}"
    assert back <= 60
