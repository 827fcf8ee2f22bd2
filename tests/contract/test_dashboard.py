"""The dashboards: their queries are PromQL over metrics that exist, and Grafana gets what it expects."""

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_operator.api.names import GROUP, LABEL_JOB
from dpo_operator.api.status import State
from dpo_operator.generate.dashboards import dashboard_queries, fill_in, fleet, job, operator_queries
from dpo_operator.generate.dashboards.catalogue import catalogue, series_names
from dpo_operator.generate.dashboards.panels import annotation_expressions, expressions
from tests.cluster.rig.binaries import binary

pytestmark = pytest.mark.contract

DASHBOARD = job.dashboard()
BOTH = pytest.mark.parametrize("dashboard", [DASHBOARD, fleet.dashboard()], ids=lambda made: made["uid"])
QUERIES = dashboard_queries("team-a", "helpful")
ANNOTATIONS = [fill_in(query, "team-a", "helpful", "1m") for query in annotation_expressions(DASHBOARD)]

OPERATOR_QUERIES = operator_queries()


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def check(queries: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """promtool's opinion of expressions, wrapped in recording rules."""
    rules = [{"record": f"check:query_{i}", "expr": query} for i, query in enumerate(queries)]
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = [str(binary("promtool")), "check", "rules", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def names_in(query: str) -> set[str]:
    """Metric names: words that begin like one of ours or like the process's, and Prometheus' own about alerts."""
    return set(re.findall(r"\b(?:dpo_|dpojob_|process_)[a-z0-9_]+|\bALERTS\b", query))


def test_every_query_is_promql(tmp_path: Path) -> None:
    queries = [*QUERIES, *ANNOTATIONS, *OPERATOR_QUERIES]
    result = check(queries, tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{len(queries)} rules found" in result.stdout


def test_promtool_would_find_an_error(tmp_path: Path) -> None:
    """Negative control."""
    assert check(["sum(rate(dpo_train_pairs_total[1m])"], tmp_path).returncode != 0


@pytest.mark.parametrize("query", [*QUERIES, *ANNOTATIONS, *OPERATOR_QUERIES])
def test_every_query_names_metrics_that_the_code_exports(query: str) -> None:
    used = names_in(query)
    assert used
    assert used <= series_names() | {"ALERTS"}


def test_every_query_is_about_one_job() -> None:
    for query in (*QUERIES, *ANNOTATIONS):
        selectors = re.findall(r"\{([^}]*)\}", query)
        assert selectors
        # What the operator exports about the job counts only from the operator.
        ours = 'namespace="team-a",dpojob="helpful"'
        by_operator = f'{ours},job="dpo-system/dpo-operator"'
        for name, selector in re.findall(r"(\w+)\{([^}]*)\}", query):
            wanted = by_operator if name.startswith("dpojob_") else ours
            assert selector == (f'{ours},alertstate="firing"' if name == "ALERTS" else wanted)
        assert len(selectors) == len(re.findall(r"\b(?:dpo|dpojob|process)_\w+|\bALERTS\b", query))
        assert "$" not in query


def test_the_fleets_figures_are_the_operators_own() -> None:
    """Anybody's pod can export a metric of any name."""
    for query in OPERATOR_QUERIES:
        named = re.findall(r"\bdpojob_\w+(?:\{([^}]*)\})?", query)
        assert named, query
        assert all('job="dpo-system/dpo-operator"' in selector for selector in named), query


def test_labels_in_queries_are_labels_of_the_metrics() -> None:
    by_name = {name: metric for metric in catalogue() for name in metric.series}
    for query in (*QUERIES, *OPERATOR_QUERIES):
        for grouped in re.findall(r"by \(([a-z_]+)\)", query):
            known = {label for name in names_in(query) for label in by_name[name].labels}
            # le is every histogram's; pod comes from the scrape.
            assert grouped in known | {"le", "pod"}


def test_names_follow_prometheus_conventions() -> None:
    for metric in catalogue():
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert metric.text or metric.labels == ("response",), metric.name
        assert not set(metric.labels) & {"job", "instance", "step"}, metric.name


@BOTH
def test_every_panel_says_what_it_shows(dashboard: dict[str, Any]) -> None:
    for panel in panels(dashboard):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["type"] in ("stat", "gauge", "timeseries", "table"), panel["title"]


@BOTH
def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    def cells(panel: dict[str, Any]) -> Iterator[tuple[int, int]]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        return itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))

    taken = [cell for panel in dashboard["panels"] for cell in cells(panel)]
    assert len(taken) == len(set(taken))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@BOTH
def test_every_variable_is_declared(dashboard: dict[str, Any]) -> None:
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert declared == {"datasource", "operator"} | ({"namespace", "dpojob"} if dashboard is DASHBOARD else set())
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard)))
    assert used - {"__rate_interval", "__interval"} == declared


def test_what_a_user_wants_to_see_is_there() -> None:
    titles = {panel["title"] for panel in panels(DASHBOARD)}
    assert titles >= {
        "State",
        "Progress",
        "Time left",
        "Reward margin",
        "Restarts",
        "Checkpoint age",
        "Loss",
        "Rewards",
    }
    assert titles >= {"Reward accuracy", "Time of a step", "Throughput", "Gradient norm", "Learning rate"}
    shown = {name for query in expressions(DASHBOARD) for name in names_in(query)}
    assert {"dpo_train_loss", "dpo_train_reward", "dpo_train_reward_margin", "dpo_eval_reward_margin"} <= shown


def test_a_margin_is_beside_each_accuracy() -> None:
    """In the same line of panels: an accuracy counts signs, and says nothing without it."""
    lines: dict[int, set[str]] = {}
    for panel in panels(DASHBOARD):
        shown = {name for target in panel["targets"] for name in names_in(target["expr"])}
        lines.setdefault(panel["gridPos"]["y"], set()).update(shown)
    accuracies = [names for names in lines.values() if any("reward_accuracy" in name for name in names)]
    assert len(accuracies) == 4
    assert all(any("reward_margin" in name for name in names) for names in accuracies)


def test_a_table_shows_its_columns_and_nothing_else() -> None:
    (table,) = [panel for panel in panels(DASHBOARD) if panel["type"] == "table"]
    (organized,) = table["transformations"]
    columns = organized["options"]["renameByName"]
    (grouped,) = re.findall(r"by \(([a-z_, ]+)\)", table["targets"][0]["expr"])
    assert set(columns) == set(grouped.split(", "))
    assert table["targets"][0]["format"] == "table"
    others = [panel for panel in panels(DASHBOARD) if panel is not table]
    assert {target["format"] for panel in others for target in panel["targets"]} == {"time_series"}


def test_what_an_administrator_wants_to_see_is_there() -> None:
    shown = {name for query in OPERATOR_QUERIES for name in names_in(query)}
    # All that the operator exports of itself, but for its version, which only selects.
    own = {m.name for m in catalogue() if m.name.startswith("dpojob_operator_")} - {"dpojob_operator_build_info"}
    assert {name for name in own if not any(series.startswith(name) for series in shown)} == set()
    assert any("dpojob_detection_seconds" in name for name in shown)
    assert any("dpojob_recovery_seconds" in name for name in shown)


def test_the_labels_of_the_scrape_are_the_labels_of_the_queries() -> None:
    # The PodMonitor turns the pod's label into `dpojob`; both begin with the API group.
    assert f"{GROUP}/job" == LABEL_JOB
    states = next(metric for metric in catalogue() if metric.name == "dpojob_status_state")
    assert states.labels == ("namespace", "dpojob", "state")
    assert {state.value for state in State} >= {"Training", "Complete", "Failed"}
