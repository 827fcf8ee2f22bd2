"""The PrometheusRule: promtool finds nothing in it, its names exist, its values are used, and each alert has its page."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_operator.generate.dashboards.catalogue import series_names
from tests.cluster.rig.binaries import binary
from tests.conftest import REPOSITORY
from tests.contract.alerts.replay import rules
from tests.contract.chart import CHART, HelmError, render

pytestmark = pytest.mark.contract

PAGES = REPOSITORY / "docs" / "runbooks"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())["monitoring"]["alerts"]
ON = "monitoring.alerts.enabled=true"


def listed(*settings: str) -> list[dict[str, Any]]:
    return [rule for group in rules(*settings)["groups"] for rule in group["rules"]]


def alerts(*settings: str) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in listed(*settings) if "alert" in rule}


def lint(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump(rules(*settings)))
    command = [str(binary("promtool")), "check", "rules", "--lint=all", "--lint-fatal", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_no_rule_unless_asked_for() -> None:
    assert render().all("PrometheusRule") == []
    made = render(ON, "monitoring.alerts.additionalLabels.release=prometheus").one("PrometheusRule")
    assert made["metadata"]["labels"]["release"] == "prometheus"


def test_promtool_finds_nothing_in_the_rules(tmp_path: Path) -> None:
    done = lint(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(listed())} rules found" in done.stdout


def test_every_name_in_a_rule_is_exported_or_recorded() -> None:
    recorded = {rule["record"] for rule in listed() if "record" in rule}
    for rule in listed():
        expression = rule["expr"]
        for name in recorded:
            expression = expression.replace(name, "")
        named = set(re.findall(r"\bdpo(?:job)?_\w+", re.sub(r"\{[^}]*\}|by \([^)]*\)|on \([^)]*\)", "", expression)))
        assert named <= series_names(), rule
        assert named or expression != rule["expr"], rule
        assert "$" not in rule["expr"]


def test_what_the_operator_says_counts_only_from_the_operator() -> None:
    for job, settings in (
        ("dpo-system/dpo-operator", ()),
        ("other", ("monitoring.alerts.operatorJob=other",)),
    ):
        for rule in listed(*settings):
            for name, selector in re.findall(r"(?<![:\w])(dpojob_\w+)(?:\{([^}]*)\})?", rule["expr"]):
                assert f'job="{job}"' in selector, f"{name} in {rule['expr']}"
    own = render(ON, release="other").one("PrometheusRule")
    assert 'job="dpo-system/other-dpo-operator"' in own["spec"]["groups"][0]["rules"][0]["expr"]


def test_values_and_alerts_are_the_same() -> None:
    assert set(alerts()) == set(VALUES["rules"])
    for name, rule in alerts().items():
        given = VALUES["rules"][name]
        assert (rule["for"], rule["labels"]) == (given["for"], {"severity": given["severity"]})


@pytest.mark.parametrize("name", VALUES["rules"])
def test_each_value_of_an_alert_is_used(name: str) -> None:
    where = f"monitoring.alerts.rules.{name}"
    given = VALUES["rules"][name]
    assert set(alerts(f"{where}.enabled=false")) == set(alerts()) - {name}
    changes = [f"{where}.severity=info", f"{where}.for=77m", "monitoring.alerts.labels.team=ml"]
    if "threshold" in given:
        changes.append(f"{where}.threshold=4321")
    rule = alerts(*changes, "monitoring.alerts.runbookUrl=https://docs.example.org/books/")[name]
    assert (rule["for"], rule["labels"]) == ("77m", {"severity": "info", "team": "ml"})
    assert ("4321" in rule["expr"]) == ("threshold" in given)
    assert rule["annotations"]["runbook_url"] == f"https://docs.example.org/books/{name}.md"


@pytest.mark.parametrize(
    "setting",
    [
        "monitoring.alerts.rules.DPOJobHang.severity=urgent",
        "monitoring.alerts.rules.DPOJobHang.for=soon",
        "monitoring.alerts.rules.DPOJobHang.threshold=many",
        "monitoring.alerts.rules.DPOJobGibberish.threshold=1",
        "monitoring.alerts.rules.DPOJobHanging.enabled=true",
        "monitoring.alerts.labels.a-b=c",
        'monitoring.alerts.operatorJob=a\\"b',
    ],
)
def test_a_value_that_would_do_nothing_is_refused(setting: str) -> None:
    with pytest.raises(HelmError, match="alerts"):
        render(ON, setting)


def test_each_alert_says_what_and_where_to_read_on() -> None:
    for name, rule in alerts().items():
        said = rule["annotations"]
        assert set(said) == {"summary", "description", "runbook_url"}
        assert "$value" in said["description"] or "$labels.code" in said["description"], name
        assert "$threshold" not in said["description"], name
        assert (REPOSITORY / said["runbook_url"]).is_file(), said["runbook_url"]


def test_each_page_is_of_an_alert_and_says_what_to_do() -> None:
    pages = {page.stem: page.read_text() for page in PAGES.glob("*.md") if page.stem != "README"}
    assert set(pages) == set(alerts())
    for name, text in pages.items():
        assert text.startswith(f"# {name}\n")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["What it means", "What to look at", "What to do"], name


def test_the_table_of_alerts_has_the_charts_values() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\]\(\1\.md\) \| (\w+) \| (\w+) \| ([\d.]*) ?\|", (PAGES / "README.md").read_text(), re.MULTILINE
    )
    written = {
        name: {"enabled": True, "severity": severity, "for": held} | ({"threshold": float(limit)} if limit else {})
        for name, severity, held, limit in rows
    }
    assert written == VALUES["rules"]


def test_alertmanagers_example_names_alerts_and_receivers_that_exist() -> None:
    example = yaml.safe_load((PAGES / "alertmanager.yaml").read_text())
    receivers = {receiver["name"] for receiver in example["receivers"]}
    routes = [example["route"], *example["route"]["routes"]]
    assert {route["receiver"] for route in routes} == receivers
    inhibited = [
        matcher for rule in example["inhibit_rules"] for kind in rule if "matchers" in kind for matcher in rule[kind]
    ]
    matchers = [*inhibited, *(matcher for route in routes for matcher in route.get("matchers", ()))]
    values = {"alertname": set(alerts()), "severity": {"critical", "warning", "info"}}
    for matcher in matchers:
        label, pattern = re.fullmatch(r'(\w+)=~?"(.*)"', matcher).groups()  # type: ignore[union-attr]
        for alternative in alternatives(pattern):
            assert any(re.fullmatch(alternative, value) for value in values[label]), matcher


def alternatives(pattern: str) -> list[str]:
    """a(b|c) as ab and ac."""
    head, _, rest = pattern.partition("(")
    if not rest:
        return pattern.split("|")
    return [head + inner for inner in rest.removesuffix(")").split("|")]
