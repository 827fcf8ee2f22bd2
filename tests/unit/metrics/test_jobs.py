"""Series of jobs, as Prometheus would read them."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dpo_operator.api.diagnosis import Finding
from dpo_operator.api.status import State
from dpo_operator.api.statusparts.rounds import RoundStatus
from dpo_operator.metrics import jobs as jobs_module
from dpo_operator.metrics.jobs import JobMetrics
from dpo_operator.queueing.key import Key
from tests.unit.planning.build import a_child, a_pod, a_reading, a_status, a_view, decide, ended, termination_text

pytestmark = pytest.mark.unit

KEY = Key("default", "pairs")
RAW = {"metadata": {"creationTimestamp": "2026-01-01T11:00:00Z"}, "spec": {"model": {"name": "org/model"}}}


def scrape(metrics):
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}


def value(metrics, name, **labels):
    found = [v for (n, *own), v in scrape(metrics).items() if n == name and set(labels.items()) <= set(own)]
    assert len(found) == 1, f"{len(found)} series {name}{labels}"
    return found[0]


def test_state_is_one_of_all_and_progress_a_ratio():
    metrics = JobMetrics()
    running = decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1), progress=a_reading(25))).status
    metrics.update(KEY, RAW, running)
    states = {
        s: value(metrics, "dpojob_status_state", state=s.value, dpojob="pairs", namespace="default") for s in State
    }
    assert {s for s, v in states.items() if v == 1} == {State.TRAINING}
    assert set(states.values()) == {0, 1}
    assert value(metrics, "dpojob_progress_ratio", dpojob="pairs") == 0.25
    assert value(metrics, "dpojob_workers", state="desired") == 2
    assert value(metrics, "dpojob_workers", state="started") == 2
    assert value(metrics, "dpojob_status_condition", condition="Running", status="True") == 1
    assert value(metrics, "dpojob_info", model="org/model") == 1


def test_rounds_are_series_by_their_number():
    metrics = JobMetrics()
    metrics.update(KEY, RAW, a_status())
    assert not any(name.startswith("dpojob_round") for name, *_ in scrape(metrics))
    known = [
        RoundStatus(round=1, pairs=60, win_rate_previous="0.625", win_rate_initial="0.625"),
        RoundStatus(round=2, pairs=50, kl_to_initial="3.5"),
    ]
    metrics.update(KEY, RAW, a_status("judge", round=2, rounds=known))
    assert value(metrics, "dpojob_round", dpojob="pairs") == 2
    assert value(metrics, "dpojob_round_pairs", round="1") == 60
    assert value(metrics, "dpojob_round_kl_nats") == 3.5
    assert value(metrics, "dpojob_round_win_rate_ratio", against="previous", round="1") == 0.625


def test_restarts_are_counted_once_by_reason():
    metrics = JobMetrics()
    status = a_status()
    metrics.update(KEY, RAW, status)
    for index in range(12):
        status = decide(
            status, a_view(a_child(attempt=index + 1), a_pod(0, attempt=index + 1), evicted(index + 1))
        ).status
        for _ in range(3):
            metrics.update(KEY, RAW, status)
    # More than the status remembers.
    assert value(metrics, "dpojob_restarts_total", reason="Evicted") == 12
    # Of all jobs together, and told before the first restart, so that an increase is seen.
    assert total(metrics, "Evicted") == 12
    assert total(metrics, "Hang") == total(JobMetrics(), "Evicted") == 0


def test_what_an_earlier_operator_restarted_is_no_news():
    status = decide(a_status(), a_view(a_child(), a_pod(0), evicted(1))).status
    metrics = JobMetrics()
    metrics.update(KEY, RAW, status)
    assert total(metrics, "Evicted") == 0


def total(metrics, reason):
    return metrics.registry.get_sample_value("dpojob_operator_job_restarts_total", {"reason": reason})


def evicted(attempt):
    return ended(1, 143, attempt=attempt, disruption="EvictionByEvictionAPI")


def test_final_values_stay_until_the_job_goes_and_then_vanish():
    metrics = JobMetrics()
    text = termination_text(0, progress=a_reading(100).model_dump(mode="json"))
    metrics.update(KEY, RAW, decide(a_status(), a_view(a_child(), ended(0, 0, text=text), ended(1, 0))).status)
    assert value(metrics, "dpojob_final_loss") == 0.6312
    assert value(metrics, "dpojob_final_reward_accuracy_ratio") == 0.75
    metrics.forget(KEY)
    assert not [name for (name, *labels) in scrape(metrics) if ("dpojob", "pairs") in labels]


def test_findings_have_a_series_while_they_hold():
    """A tenant's pod may invent codes; they are one label."""
    metrics = JobMetrics()
    findings = (
        Finding(code="FlatLoss", severity="Unhealthy", cause="Flat."),
        *(Finding(code=f"Made{n}", severity="Info", cause="x") for n in range(4)),
    )
    reading = a_reading(25).model_copy(update={"diagnosed_step": 25, "findings": findings})
    status = decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1), progress=reading)).status
    metrics.update(KEY, RAW, status)
    assert value(metrics, "dpojob_finding", code="FlatLoss", severity="Unhealthy", dpojob="pairs") == 1
    assert value(metrics, "dpojob_finding", code="Other", severity="Info") == 1
    assert value(metrics, "dpojob_finding_info", code="FlatLoss", severity="Unhealthy", message="Flat.") == 1
    assert value(metrics, "dpojob_status_condition", condition="Healthy", status="False") == 1
    gone = reading.model_copy(update={"findings": ()})
    metrics.update(KEY, RAW, decide(status, a_view(a_child(), a_pod(0), a_pod(1), progress=gone)).status)
    assert not {"dpojob_finding", "dpojob_finding_info"} & {name for name, *_ in scrape(metrics)}


def test_a_long_sentence_does_not_stop_the_scrape():
    """The PodMonitor allows 640 bytes, and a letter may have four."""
    metrics = JobMetrics()
    long = Finding(code="FlatLoss", severity="Unhealthy", cause="𝄞" * 300, suggestion="𝄞" * 300)
    reading = a_reading(25).model_copy(update={"diagnosed_step": 25, "findings": (long,)})
    metrics.update(KEY, RAW, decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1), progress=reading)).status)
    (labels,) = [dict(labels) for name, *labels in scrape(metrics) if name == "dpojob_finding_info"]
    assert labels["message"] == "𝄞" * 150


def test_job_of_the_same_name_starts_from_nothing():
    metrics = JobMetrics()
    metrics.update(KEY, RAW, decide(a_status(), a_view(a_child(), a_pod(0), evicted(1))).status)
    later = {**RAW, "metadata": {"creationTimestamp": "2026-01-02T11:00:00Z"}}
    metrics.update(KEY, later, a_status())
    assert not [name for (name, *_) in scrape(metrics) if name == "dpojob_restarts_total"]


def test_job_that_does_not_change_is_rendered_once(monkeypatch):
    metrics, rendered = JobMetrics(), []
    real = jobs_module._samples
    monkeypatch.setattr(jobs_module, "_samples", lambda jobs: rendered.append(len(jobs)) or real(jobs))
    running = decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1), progress=a_reading(25))).status
    for _ in range(3):
        metrics.update(KEY, RAW, running.model_copy())
        assert value(metrics, "dpojob_progress_ratio") == 0.25
    assert rendered == [1]
    later = running.progress.model_copy(update={"step": running.progress.max_steps})
    metrics.update(KEY, RAW, running.model_copy(update={"progress": later}))
    assert value(metrics, "dpojob_progress_ratio") == 1.0
    assert rendered == [1, 1]


def test_of_a_job_that_has_ended_only_the_text_is_kept():
    metrics = JobMetrics()
    failed = a_status().model_copy(update={"state": State.FAILED, "message": "words that no series has"})
    metrics.update(KEY, RAW, failed)
    assert "words that no series has" not in repr(metrics._jobs)
    assert value(metrics, "dpojob_status_state", state="Failed") == 1
    # It is retried.
    metrics.update(KEY, RAW, a_status())
    assert value(metrics, "dpojob_status_state", state="Failed") == 0


def test_every_family_is_told_once_and_with_its_own_series():
    metrics = JobMetrics()
    for name in ("a", "b"):
        odd = {**RAW, "spec": {"model": {"name": 'x\n# HELP dpojob_info "quoted"'}}}
        metrics.update(Key("default", name), odd, a_status())
    text = metrics.render().decode()
    helps = [line for line in text.splitlines() if line.startswith("# HELP ")]
    assert len(helps) == len(set(helps))
    families = {f.name: f for f in text_string_to_metric_families(text)}
    assert [s.labels["dpojob"] for s in families["dpojob_info"].samples] == ["a", "b"]
    assert families["dpojob_info"].samples[0].labels["model"] == 'x\n# HELP dpojob_info "quoted"'


def test_errors_are_counted_and_passed_on():
    metrics = JobMetrics()
    with pytest.raises(TimeoutError), metrics.timed("reconcile"):
        raise TimeoutError
    assert value(metrics, "dpojob_operator_handler_errors_total", handler="reconcile", error="TimeoutError") == 1
    assert value(metrics, "dpojob_operator_handler_seconds_count", handler="reconcile", outcome="error") == 1
