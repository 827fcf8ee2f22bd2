"""Pieces of Grafana dashboards. A panel says what it shows, in which unit, and how to read it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from dpo_operator.generate.dashboards.queries import OPERATOR_MONITOR

Json = dict[str, Any]

# Version of the dashboard model that Grafana 12 writes; newer ones migrate it when they load it.
SCHEMA_VERSION = 41
WIDTH = 24
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}

Color = Literal["green", "yellow", "orange", "red", "blue", "text"]
Steps = tuple[tuple[float | None, Color], ...]


@dataclass(frozen=True)
class Query:
    """A PromQL expression and the name of its curves."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A curve over time, a single newest value, or a table of newest series.

    unit: of Grafana's units, such as s, percentunit or short. steps: colour from a value on; the first has no value.
    line: draws a horizontal dashed line at each step. stack: curves add up to a whole. columns: labels that a table shows, and
    their headings, from left to right.
    """

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["stat", "timeseries", "gauge", "table"] = "timeseries"
    width: int = 8
    height: int = 8
    decimals: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    steps: Steps = ((None, "blue"),)
    line: bool = False
    stack: bool = False
    show_name: bool = False
    colors: dict[str, Color] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A heading with panels below it, placed from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Annotation:
    """Marks on all curves where an expression has a value. title and text: with {{labels}}."""

    name: str
    expr: str
    title: str
    color: Color
    shown: bool = True
    text: str = ""


def build_dashboard(
    *, uid: str, title: str, description: str, variables: list[Json], annotations: list[Annotation], rows: list[Row]
) -> Json:
    """The JSON model of a dashboard."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["dpo-operator"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource_variable(), *variables]},
        "annotations": {"list": [_annotation(a) for a in annotations]},
        "links": [],
        "panels": list(_placed(rows)),
    }


def query_variable(name: str, label: str, query: str) -> Json:
    """A variable whose choices come from Prometheus."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": False,
        "includeAll": False,
        "options": [],
        "current": {},
    }


def operator_variable() -> Json:
    """Which of Prometheus' jobs scrapes the operator. The chart writes its PodMonitor's name here."""
    return {
        "type": "textbox",
        "name": "operator",
        "label": "Operator",
        "query": OPERATOR_MONITOR,
        "current": {"text": OPERATOR_MONITOR, "value": OPERATOR_MONITOR},
        "options": [],
    }


def expressions(dashboard: Json) -> list[str]:
    """PromQL of all panels, in their order."""
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def annotation_expressions(dashboard: Json) -> list[str]:
    """PromQL of all annotations; they have a value only where something happened."""
    return [a["expr"] for a in dashboard["annotations"]["list"]]


def _datasource_variable() -> Json:
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "refresh": 1,
        "options": [],
        "current": {},
    }


def _annotation(annotation: Annotation) -> Json:
    return {
        "name": annotation.name,
        "datasource": DATASOURCE,
        "enable": annotation.shown,
        "iconColor": annotation.color,
        "expr": annotation.expr,
        "titleFormat": annotation.title,
        "textFormat": annotation.text,
        "step": "10s",
    }


def _placed(rows: list[Row]) -> Iterator[Json]:
    number, top = 0, 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1},
        }
        top, left, tallest = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > WIDTH:
                top, left, tallest = top + tallest, 0, 0
            number += 1
            yield _panel(panel, number, {"x": left, "y": top, "w": panel.width, "h": panel.height})
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest


def _panel(panel: Panel, number: int, position: Json) -> Json:
    instant = panel.kind != "timeseries"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "options": _options(panel),
        "transformations": _transformations(panel),
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "format": "table" if panel.kind == "table" else "time_series",
                "instant": instant,
                "range": not instant,
            }
            for i, query in enumerate(panel.queries)
        ],
    }


def _defaults(panel: Panel) -> Json:
    defaults: Json = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": color, "value": value} for value, color in panel.steps],
        },
    }
    for key, value in (("decimals", panel.decimals), ("min", panel.minimum), ("max", panel.maximum)):
        if value is not None:
            defaults[key] = value
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stack else 0,
            "showPoints": "auto",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stack else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.line else "off"},
        }
    return defaults


def _overrides(panel: Panel) -> list[Json]:
    return [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}],
        }
        for name, color in panel.colors.items()
    ]


def _transformations(panel: Panel) -> list[Json]:
    if panel.kind != "table":
        return []
    order = {label: number for number, label in enumerate(panel.columns)}
    shown = {"excludeByName": {"Time": True, "Value": True}, "indexByName": order, "renameByName": panel.columns}
    return [{"id": "organize", "options": shown}]


def _options(panel: Panel) -> Json:
    newest: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    match panel.kind:
        case "stat":
            return {
                "reduceOptions": newest,
                "colorMode": "value",
                "graphMode": "none",
                "textMode": "name" if panel.show_name else "value",
                "justifyMode": "auto",
                "orientation": "auto",
            }
        case "table":
            return {"showHeader": True, "cellHeight": "sm"}
        case "gauge":
            return {"reduceOptions": newest, "showThresholdLabels": False, "showThresholdMarkers": False}
        case _:
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
                "tooltip": {"mode": "multi", "sort": "none"},
            }
