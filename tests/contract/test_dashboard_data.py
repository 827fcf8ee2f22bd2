"""Every query of the dashboard returns data from a real Prometheus that scrapes the code's own exporters."""

import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, start_http_server

from dpo_operator.api.reports import CheckpointRef
from dpo_operator.api.status import DPOJobStatus, Restart
from dpo_operator.generate.dashboards import dashboard_queries, fill_in, job, operator_queries
from dpo_operator.generate.dashboards.panels import annotation_expressions
from dpo_operator.metrics.jobs import JobMetrics
from dpo_operator.metrics.server import MetricsServer
from dpo_operator.metrics.timings import Timings
from dpo_operator.queueing.key import Key
from dpo_trainer.checkpoint.folder import CheckpointFolder
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from tests import tied
from tests.cluster.rig.binaries import binary
from tests.contract.alerts.replay import rules
from tests.contract.chart import NAMESPACE, render
from tests.ports import free_port

pytestmark = pytest.mark.contract

NAME, TENANT = "helpful", "team-a"
STEPS = 8
STATUS: dict[str, Any] = {
    "state": "Training",
    "phase": "train",
    "attempts": {"prepare": 1, "train": 2},
    "workers": {"desired": 2, "started": 2},
    "progress": {"attempt": 2, "step": 3, "maxSteps": 10},
    "round": 2,
    "rounds": [
        {
            "round": 1, "pairs": 60, "ties": 4, "judgeCalls": 600, "judgeTokens": 90_000, "generationTokens": 40_000, "scoreMean": "1.5",
            "endedShare": "0.97", "klToInitial": "0.9", "ownNll": "1.1", "orderAgreement": "0.8", "longerWins": "0.55",
            "winRatePrevious": "0.62", "winRateInitial": "0.62", "winRateLengthControlled": "0.6",
        }
    ],
    "leg": 2,
    "legs": [
        {
            "leg": 1, "settings": "beta 0.1", "outcome": "Trained", "steps": 10, "loss": "0.5", "accuracy": "0.7", "margin": "0.3",
            "drift": "0.02", "kl": "1.5", "chosen": True,
        }
    ],
    "volume": {"claimName": "w", "claimUid": "u", "folder": "f", "capacityBytes": 10**11, "freeBytes": 10**10},
    "findings": [
        {
            "code": "Gibberish",
            "severity": "Unhealthy",
            "phase": "train",
            "step": 2,
            "message": "The answers do not end.",
        }
    ],
}  # fmt: skip
RESTART = Restart(time="2026-01-01T00:00:00Z", phase="train", attempt=1, reason="Killed", counting="Counted", step=1)
TRAIN = {
    "loss": 0.6,
    "rewards/chosen": 0.1,
    "rewards/rejected": -0.1,
    "rewards/margins": 0.2,
    "rewards/accuracies": 0.7,
    "logps/chosen": -100.0,
    "logps/rejected": -120.0,
    "logratio_per_token/chosen": -0.1,
    "logratio_per_token/rejected": -0.3,
    "response_tokens/chosen": 40.0,
    "response_tokens/rejected": 60.0,
    "margin_length_correlation": -0.2,
    # No method has all of these.
    "nll_loss": 2.0,
    "kl": 0.5,
    "log_odds_chosen": 0.4,
}
EVAL = TRAIN | {
    "generation_tokens/policy": 50.0,
    "generation_tokens/reference": 45.0,
    "rewards/accuracies/le_64": 0.8,
    "rewards/accuracies/gt_1024": 0.6,
    "length_baseline_accuracy": 0.55,
}


def serve(registry: CollectorRegistry) -> int:
    """Serve a registry for the rest of the session; returns the port."""
    server, _ = start_http_server(0, addr="127.0.0.1", registry=registry)
    return int(server.server_port)


def scrape(name: str, port: int, honor: bool, **labels: str) -> dict[str, Any]:
    return {
        "job_name": name,
        "honor_labels": honor,
        "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": labels}],
    }


def ask(url: str, query: str) -> list[Any]:
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=10) as answer:
        return list(json.load(answer)["data"]["result"])


def wait_for(url: str, query: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if ask(url, query):
                return
        except OSError:
            pass  # still starting
        time.sleep(0.2)
    raise AssertionError(f"no data for {query}")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Prometheus that has watched a short run; labels and honoring are those of the chart's monitors."""
    folder: Path = tmp_path_factory.mktemp("prometheus")
    operator = JobMetrics()
    Timings(operator.registry)
    operator.process.set_sources(None, lambda: {"pods": 1.0})
    served = MetricsServer(operator.render, 0)
    raw = {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"model": {"name": "org/model"}}}
    operator.update(Key(TENANT, NAME), raw, DPOJobStatus.model_validate(STATUS))
    trainer = Telemetry(
        "train",
        2,
        WorkDir(folder / "work"),
        world_size=2,
        checkpoints=CheckpointFolder(WorkDir(folder / "work").checkpoints),
    )
    monitors = render("monitoring.operator.enabled=true", "monitoring.trainer.enabled=true")
    honors = {
        monitor["metadata"]["name"]: monitor["spec"]["podMetricsEndpoints"][0]["honorLabels"]
        for monitor in monitors.all("PodMonitor")
    }
    settings = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            scrape(
                "dpo-system/dpo-operator",
                served.port,
                honors["dpo-operator"],
                namespace=NAMESPACE,
                pod="operator-0",
            ),
            scrape(
                "trainer",
                serve(trainer.metrics.registry),
                honors["dpo-operator-trainer"],
                namespace=TENANT,
                pod="helpful-train-2-0",
                dpojob=NAME,
            ),
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules()))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = tied.popen(
            [str(binary("prometheus")), *flags, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )
    try:
        wait_for(url, 'dpojob_info{namespace="team-a"}')
        train(trainer, operator, raw)
        wait_for(url, f"dpo_train_step == {STEPS}")
        time.sleep(1.5)  # two more samples, for the rates
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)
        trainer.close()
        served.close()


def train(trainer: Telemetry, operator: JobMetrics, raw: dict[str, Any]) -> None:
    """Some steps with an evaluation and a checkpoint; meanwhile the operator counts a restart."""
    info = {"model": "org/model", "loss_type": "dpo", "peft": "none", "zero_stage": "3"}
    trainer.begin(max_steps=2 * STEPS, checkpoint_interval=4, info=info)
    trainer.initial_margin(0.0)
    trainer.initial_loss(0.6931)
    for step in range(1, STEPS + 1):
        with trainer.timed("policy"):
            time.sleep(0.25)
        metrics = TRAIN | {"grad_norm": 1.0, "learning_rate": 5e-7, "entropy": 1.5}
        with operator.timed("reconcile"):
            operator.process.requested("GET", "/api/v1/namespaces/team-a/pods", 200)
        trainer.step(step, epoch=step / 16, seconds=0.25, pairs=8, tokens=800, metrics=metrics)
    trainer.evaluation(STEPS, EVAL)
    saved = CheckpointRef(step=STEPS, path="checkpoints/x", digest="a" * 64, attempt=2, time=time.time())
    trainer.checkpoint(saved, 0.1)
    restarted = DPOJobStatus.model_validate(STATUS).model_copy(update={"restart_history": [RESTART]})
    operator.update(Key(TENANT, NAME), raw, restarted)


@pytest.mark.parametrize("query", dashboard_queries(TENANT, NAME, interval="10s"))
def test_every_query_returns_data(prometheus: str, query: str) -> None:
    result = ask(prometheus, query)
    assert result
    assert all(sample["value"][1] != "NaN" for sample in result)


@pytest.mark.parametrize("query", operator_queries(interval="10s"))
def test_every_query_about_the_operator_returns_data(prometheus: str, query: str) -> None:
    result = ask(prometheus, query)
    assert result
    # Nothing failed here: the quantiles of how soon that is seen and mended are no numbers.
    assert "dpojob_detection" in query or "dpojob_recovery" in query or result[0]["value"][1] != "NaN"


@pytest.mark.parametrize("query", dashboard_queries(TENANT, "other-job", interval="10s"))
def test_no_query_returns_another_jobs_data(prometheus: str, query: str) -> None:
    """Negative control: only what is 0 by definition has a value."""
    assert ask(prometheus, re.sub(r" or (vector\(0\)|label_replace\(vector\(0\).*)$", "", query)) == []


@pytest.mark.parametrize("query", annotation_expressions(job.dashboard()))
def test_annotations_mark_what_happened(prometheus: str, query: str) -> None:
    wait_for(prometheus, fill_in(query, TENANT, NAME, "30s"))


def test_the_charts_rules_are_loaded_and_healthy(prometheus: str) -> None:
    with urllib.request.urlopen(f"{prometheus}/api/v1/rules", timeout=10) as answer:
        groups = json.load(answer)["data"]["groups"]
    found = {rule["name"]: (rule["health"], rule.get("lastError")) for group in groups for rule in group["rules"]}
    assert set(found) == {rule.get("alert") or rule["record"] for group in rules()["groups"] for rule in group["rules"]}
    assert set(found.values()) == {("ok", None)}


def test_an_alert_says_the_sentence_of_its_finding(prometheus: str) -> None:
    wait_for(prometheus, 'ALERTS{alertstate="firing"}')
    with urllib.request.urlopen(f"{prometheus}/api/v1/alerts", timeout=10) as answer:
        (alert,) = [alert for alert in json.load(answer)["data"]["alerts"] if alert["state"] == "firing"]
    assert alert["labels"]["alertname"] == "DPOJobGibberish"
    assert "Gibberish (Unhealthy): The answers do not end." in alert["annotations"]["description"]
    (mark,) = ask(prometheus, fill_in(annotation_expressions(job.dashboard())[1], TENANT, NAME, "30s"))
    assert mark["metric"]["message"] == "The answers do not end."


def test_the_variables_find_the_job(prometheus: str) -> None:
    (found,) = ask(prometheus, "dpojob_info")
    assert (found["metric"]["namespace"], found["metric"]["dpojob"]) == (TENANT, NAME)


def test_values_are_those_of_the_run(prometheus: str) -> None:
    by_title = {
        panel["title"]: panel["targets"][0]["expr"] for panel in job.dashboard()["panels"] if "targets" in panel
    }

    def value(title: str) -> float:
        return float(ask(prometheus, fill_in(by_title[title], TENANT, NAME, "10s"))[0]["value"][1])

    assert ask(prometheus, fill_in(by_title["State"], TENANT, NAME, "10s"))[0]["metric"]["state"] == "Training"
    assert value("Progress") == pytest.approx(0.3)
    assert value("Reward margin") == pytest.approx(0.2)
    assert value("Restarts") == 1
    assert value("Loss") == pytest.approx(0.6)
    assert 0 <= value("Checkpoint age") < 60
    assert value("Time left") > 0
