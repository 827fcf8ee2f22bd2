"""Recorded runs and states of the operator as series of promtool's unit tests, made by the exporters themselves."""

import json
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from prometheus_client.parser import text_string_to_metric_families

from dpo_operator.api.status import DPOJobStatus
from dpo_operator.generate.dashboards.queries import OPERATOR_MONITOR
from dpo_operator.metrics.jobs import JobMetrics
from dpo_operator.queueing.key import Key
from tests.cluster.rig.binaries import binary
from tests.contract.chart import NAMESPACE, render

RECORDED = Path(__file__).parent / "recorded"
TENANT, NAME = "team-a", "helpful"
# Time between two scrapes. A recording has a reading each second: time is stretched, so that runs of minutes become runs of an hour.
TICK = 15
# Time between two evaluations of the rules.
EVALUATION = 60
STRETCH = 15.0

# Values by series, one for each tick; None: the series is not there.
Series = dict[str, list[float | None]]


@cache
def rules(*settings: str) -> dict[str, Any]:
    """Prometheus' rule file, as the chart ships it: {"groups": […]}."""
    spec: dict[str, Any] = render("monitoring.alerts.enabled=true", *settings).one("PrometheusRule")["spec"]
    return spec


@cache
def recorded(name: str) -> Mapping[str, Sequence[float | None]]:
    """A recording in stretched time; see record.py."""
    found = json.loads((RECORDED / f"{name}.json").read_text())
    return {key: [_stretched(key, value) for value in values] for key, values in found.items()}


def _stretched(key: str, value: float | str | None) -> float | None:
    if value is None:
        return None
    seconds = "_seconds" in key.split("{")[0] and not key.startswith("dpo_train_step_seconds_count")
    return float(value) * STRETCH if seconds else float(value)


def of_pod(run: Mapping[str, Sequence[float | None]], attempt: int = 1, at: int = 0) -> Series:
    """A run as the chart's PodMonitor labels it. at: tick of its first reading."""
    labels = f'namespace="{TENANT}",dpojob="{NAME}",pod="{NAME}-train-{attempt}-0",'
    return {
        key.replace("{", f"{{{labels}"): [None] * at + [_moved(key, value, at) for value in values]
        for key, values in run.items()
    }


def _moved(key: str, value: float | None, at: int) -> float | None:
    return value + at * TICK if value is not None and "_timestamp_seconds{" in key else value


def length(series: Mapping[str, Sequence[float | None]]) -> int:
    """Ticks."""
    return max(len(values) for values in series.values())


@dataclass(frozen=True)
class Operator:
    """The operator's own figures. waits: seconds that the first DPOJob waits for a worker. answers: HTTP codes, equally often."""

    leader: float = 1
    watch_age: float = 20
    unreadable: float = 0
    waits: float = 0
    answers: tuple[int, ...] = (200,)


HEALTHY = Operator()


class Lanes(NamedTuple):
    """What is exported of the work queue."""

    waits: float

    def depth(self, lane: str) -> int:
        return int(self.waits > 0)

    def oldest_seconds(self, lane: str) -> float:
        return self.waits


def of_operator(timeline: Mapping[int, DPOJobStatus], ticks: int, own: Operator = HEALTHY) -> Series:
    """What the operator exports of a job and of itself. timeline: the job's statuses by the tick from which on they hold."""
    metrics = JobMetrics()
    metrics.process.set_sources(Lanes(own.waits), lambda: {"dpojobs": own.watch_age})
    metrics.process.leader.set(own.leader)
    metrics.process.unreadable.set(own.unreadable)
    for code in own.answers:
        metrics.process.requested("GET", "/api/v1/pods", code)
    raw = {"metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"}, "spec": {"model": {"name": "org/model"}}}
    series: Series = {}
    scraped: dict[str, float] = {}
    for tick in range(ticks):
        if tick in timeline:
            metrics.update(Key(TENANT, NAME), raw, timeline[tick])
        if tick in timeline or not scraped:
            scraped = _scraped(metrics)
        for name, value in scraped.items():
            # Each code is answered once in each tick.
            grows = name.startswith("dpojob_operator_api_requests_total")
            series.setdefault(name, [None] * tick).append(value * tick if grows else value)
        for name in series.keys() - scraped.keys():
            series[name].append(None)
    return series


@cache
def _asked() -> set[str]:
    """Names in the rules."""
    return {
        name
        for group in rules()["groups"]
        for rule in group["rules"]
        for name in re.findall(r"\bdpo(?:job)?_\w+", json.dumps(rule))
    }


def _scraped(metrics: JobMetrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            if sample.name in _asked():
                # As honorLabels says, labels of a job's series are its own, and the operator's get those of its pod.
                labels = {"namespace": NAMESPACE, "pod": "operator-0", "job": OPERATOR_MONITOR} | sample.labels
                inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
                found[f"{sample.name}{{{inner}}}"] = sample.value
    return found


def promtool(folder: Path, cases: Mapping[str, tuple[Series, dict[str, Any]]]) -> dict[str, str]:
    """What promtool finds wrong with the chart's rules, by case; nothing is the empty text. One process for all of them.

    cases: series, and what is required: alert_rule_test, promql_expr_test.
    """
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules()))
    tests = [
        {
            "name": name,
            "interval": f"{TICK}s",
            "input_series": [{"series": key, "values": " ".join(map(_word, values))} for key, values in series.items()],
            **required,
        }
        for name, (series, required) in cases.items()
    ]
    unit = {"rule_files": ["rules.yaml"], "evaluation_interval": f"{EVALUATION}s", "tests": tests}
    (folder / "unit.yaml").write_text(json.dumps(unit))
    report = folder / "report.xml"
    command = [str(binary("promtool")), "test", "rules", f"--junit={report}", str(folder / "unit.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert report.is_file(), done.stderr
    found = {
        case.attrib["name"]: "\n".join(child.text or "failed" for child in case)
        for case in ElementTree.parse(report).iter("testcase")
    }
    assert set(found) == set(cases), done.stdout + done.stderr
    return found


def _word(value: float | None) -> str:
    """As promtool writes values; what is not there is stale, as after a failed scrape."""
    return "stale" if value is None else repr(float(value)).replace("nan", "NaN").replace("inf", "Inf")


def fires(series: Series, alerts: Sequence[str]) -> dict[str, Any]:
    """Requires that exactly these alerts fire at some time."""
    asked = 'max by (alertname) (max_over_time(ALERTS{alertstate="firing"}[1d]))'
    expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(alerts)]
    test = {"expr": asked, "eval_time": f"{(length(series) - 1) * TICK}s", "exp_samples": expected}
    return {"promql_expr_test": [test]}


def says(alert: str, minute: int, labels: dict[str, str], summary: str, description: str) -> dict[str, Any]:
    """Requires that the alert fires at this minute, once and with these texts."""
    page = f"docs/runbooks/{alert}.md"
    expected = {
        "exp_labels": labels,
        "exp_annotations": {"summary": summary, "description": description, "runbook_url": page},
    }
    return {"alert_rule_test": [{"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": [expected]}]}
