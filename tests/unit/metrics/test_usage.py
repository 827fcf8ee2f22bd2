"""GPU time in the status: from the moment when all pods of an attempt run until they no longer do."""

from datetime import timedelta

import pytest

from dpo_operator.api.quantity import hours
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.metrics.jobs import JobMetrics
from dpo_operator.queueing.key import Key
from tests.unit.planning.build import NOON, a_child, a_job, a_pod, a_reading, a_status, a_view, decide, ended

pytestmark = pytest.mark.unit

BOTH = (a_pod(0), a_pod(1))


def after(seconds: float, status: DPOJobStatus, *seen: object, **more: object) -> DPOJobStatus:
    return decide(status, a_view(*seen, **more), now=NOON + timedelta(seconds=seconds)).status


def test_the_clock_starts_when_all_pods_run():
    waiting = after(0, a_status(), a_child(), a_pod(0), a_pod(1, pod_phase="Pending", ready=False))
    assert waiting.usage is None
    running = after(30, waiting, a_child(), *BOTH)
    assert (running.usage.gpus, running.usage.since) == (2, NOON + timedelta(seconds=30))
    # Further looks change nothing.
    assert after(60, running, a_child(), *BOTH).usage == running.usage


def test_an_attempt_that_fails_counts_and_so_does_the_next():
    running = after(0, a_status(), a_child(), *BOTH)
    failed = after(90, running, a_child(), a_pod(0), ended(1, 137, at="12:01:30"))
    assert (failed.usage.gpu_seconds, failed.usage.gpus, failed.usage.since) == (180, 0, None)
    again = after(200, failed, a_child(attempt=2), a_pod(0, attempt=2), a_pod(1, attempt=2))
    assert (again.usage.gpu_seconds, again.usage.gpus) == (180, 2)
    done = after(260, again, a_child(attempt=2, complete=True), ended(0, 0, attempt=2), ended(1, 0, attempt=2))
    assert done.phase == "export"
    assert (done.usage.gpu_seconds, done.usage.gpu_hours) == (300, "0.083")


def test_a_suspended_job_holds_no_gpus():
    running = after(0, a_status(), a_child(), *BOTH)
    job = a_job(suspend=True)
    stopped = decide(running, a_view(a_child(), *BOTH), job=job, now=NOON + timedelta(seconds=10)).status
    assert (stopped.usage.gpu_seconds, stopped.usage.since) == (20, None)


def test_a_job_without_gpus_uses_none():
    running = decide(a_status(), a_view(a_child(), *BOTH), job=a_job(gpusPerNode=0)).status
    assert running.usage is None


def test_a_clock_that_goes_back_takes_nothing_away():
    running = after(100, a_status(), a_child(), *BOTH)
    failed = after(40, running, a_child(), a_pod(0), ended(1, 137))
    assert failed.usage.gpu_seconds == 0


def test_series_of_usage():
    reading = a_reading(25).model_copy(update={"tokens": 12_345})
    running = after(0, a_status(), a_child(), *BOTH, progress=reading)
    metrics = JobMetrics()
    metrics.update(Key("default", "pairs"), {"metadata": {}}, after(90, running, a_child(), *BOTH, progress=reading))
    text = metrics.render().decode()
    labels = '{dpojob="pairs",namespace="default"}'
    since = float(NOON.timestamp())
    assert f"dpojob_gpu_seconds_total{labels} 0.0" in text
    assert f"dpojob_running_gpus{labels} 2.0" in text
    assert float(text.split(f"dpojob_running_since_timestamp_seconds{labels} ")[1].split()[0]) == since
    assert f"dpojob_trained_tokens{labels} 12345.0" in text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0.000"), (90, "0.025"), (45_000, "12.5"), (4_644_000, "1290")])
def test_hours_are_short(seconds: float, text: str):
    assert hours(seconds) == text
