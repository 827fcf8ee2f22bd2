"""The reference pages, made from the types: tables of the DPOJob's fields, the exit codes, the metrics, the chart's values."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from dpo_operator.api import conditions, names
from dpo_operator.api.allowed.environment import VARIABLES
from dpo_operator.api.exitcodes import TABLE, UNKNOWN, ExitCode
from dpo_operator.api.pods import RESERVED_ENV_TEXT
from dpo_operator.api.rules import spec as rules
from dpo_operator.api.rules.thresholds import THRESHOLDS
from dpo_operator.generate import crd, validations
from dpo_operator.generate.dashboards.catalogue import catalogue

Json = dict[str, Any]

MADE = "<!-- Made by `python -m dpo_operator.generate`. -->\n"
VALUES_BEGIN = "<!-- values:begin"
VALUES_END = "<!-- values:end -->"
THRESHOLDS_BEGIN = "<!-- thresholds:begin"
THRESHOLDS_END = "<!-- thresholds:end -->"

CLASSES = {
    "configuration": "The job can't work as written: it fails at once.",
    "infrastructure": "Not the job's fault: all ranks restart from the last checkpoint, and it does not count.",
    "counted": "All ranks restart from the last checkpoint, and it counts against `failurePolicy.maxRestarts`.",
    "secondary": "The rank stopped because another one had; the other one's reason decides.",
}


def dpojob_page() -> str:
    """Every field of a DPOJob's spec and status."""
    spec, status = crd.spec_schema(), crd.status_schema()
    parts = [
        MADE,
        f"# DPOJob\n\n`apiVersion: {names.API_VERSION}`, `kind: {names.KIND}`, short name `{crd.SHORT_NAMES[0]}`. "
        f"`kubectl explain {names.KIND.lower()}.spec --recursive` shows the same in a terminal.\n",
        f"The name: {rules.NAME_MESSAGE.removeprefix('metadata.name: ')}.\n",
        "## Columns of `kubectl get dpojob`\n",
        _table(("Column", "From", "Meaning"), ((c[0].upper(), f"`{c[2]}`", c[3]) for c in crd.COLUMNS)),
        *_sections("spec", spec),
        "## Rules over several fields\n",
        _table(("Field", "Rule"), ((f"`spec.{rule.field}`", rule.message) for rule in rules.SPEC_RULES)),
        "## What may change\n",
        f"These fields {validations.IMMUTABLE_MESSAGE.replace('; make another DPOJob', ', because they decide what is computed')}: "
        + ", ".join(f"`{field}`" for field in rules.IMMUTABLE_FIELDS)
        + f". So do those of `spec.iterative`, which can't be added or removed either; `spec.{rules.ROUNDS}` {validations.ROUNDS_MESSAGE}. "
        "All others may change at any time.\n",
        *_sections("status", status),
        "## Conditions\n",
        "Types: " + ", ".join(f"`{kind}`" for kind in conditions.TYPES) + ".\n",
    ]
    return "\n".join(parts)


def environment_page() -> str:
    """What pod.env may set."""
    return "\n".join(
        [
            MADE,
            "# Environment variables\n",
            "`spec.pod.env` sets variables of training pods. Every DPOJob may set these; `*` stands for any end:\n",
            *(f"- `{name}`" for name in VARIABLES),
            "\nAn administrator adds more by the chart's value `allow.env`, by name or with a `*` at the end. `dpo run` and `dpo validate` "
            "take `--allow-env` for the same. Think twice about those that send a Secret or data elsewhere, such as `WANDB_BASE_URL`, or "
            "that name a file.\n",
            f"Refused even then, by the API server, are those that choose code and those that the operator sets: {RESERVED_ENV_TEXT}.\n",
        ]
    )


def exit_codes_page() -> str:
    """What the trainer's exit codes mean and what the operator does."""
    rows = [
        (str(int(code)), f"`{TABLE[code].reason}`", TABLE[code].failure_class, TABLE[code].meaning)
        for code in ExitCode
        if code is not ExitCode.OK
    ]
    rows.append(("other", f"`{UNKNOWN.reason}`", UNKNOWN.failure_class, UNKNOWN.meaning))
    return "\n".join(
        [
            MADE,
            "# Exit codes\n",
            "The trainer's exit status tells the operator what to do. The reason is the one in the job's conditions and "
            "events. 0 is success.\n",
            _table(("Code", "Reason", "Class", "Meaning"), rows),
            "## Classes\n",
            _table(("Class", "What the operator does"), CLASSES.items()),
        ]
    )


def metrics_page() -> str:
    """Every metric of the operator and the trainer."""
    parts = [MADE, "# Metrics\n"]
    texts = {
        "operator": f"## Operator\n\nPort {names.METRICS_PORT} of the operator's pod, `/metrics`. Series of a job are there as long "
        "as the DPOJob is. Scrape with `honorLabels: true`: `namespace` is the DPOJob's.\n",
        "trainer": f"## Trainer\n\nPort {names.METRICS_PORT} of every trainer pod, `/metrics`. Rank 0 exports what is reduced over "
        "all ranks; every pod exports its own times and memory. `namespace`, `pod` and `dpojob` are added by the chart's "
        "PodMonitor. A gauge without a value yet is NaN.\n",
    }
    for source, text in texts.items():
        rows = (
            (f"`{m.name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels), m.text)
            for m in catalogue()
            if m.source == source and not m.name.startswith("process_")
        )
        parts += [text, _table(("Name", "Type", "Labels", "Meaning"), rows)]
    parts.append("Both export `process_*`, the CPU, memory and files of their process, too.\n")
    return "\n".join(parts)


def with_thresholds_table(page: str) -> str:
    """docs/diagnosis.md with its table of limits replaced. Raises ValueError when the page lacks the markers."""
    rows = (
        (
            f"`{name}`",
            f"`{limit.code}`",
            f"{limit.default:g}{f' {limit.unit}' if limit.unit else ''}",
            limit.meaning,
            limit.basis,
        )
        for name, limit in THRESHOLDS.items()
    )
    table = _table(("Name", "Code", "Default", "Of what", "Basis"), rows)
    return _with_table("docs/diagnosis.md", page, THRESHOLDS_BEGIN, THRESHOLDS_END, table)


def with_values_table(readme: str, schema: Json, values: Json) -> str:
    """The chart's README with its table of values replaced.

    Raises ValueError when the README lacks the markers of the table.
    """
    rows = [(f"`{path}`", _default(default), text) for path, default, text in _values("", schema, values)]
    table = _table(("Value", "Default", "Meaning"), rows)
    return _with_table("the chart's README", readme, VALUES_BEGIN, VALUES_END, table)


def _with_table(name: str, page: str, begin: str, end: str, table: str) -> str:
    """A page with what is between its markers replaced. name: of the page. Raises ValueError when it lacks the markers."""
    head, found_begin, rest = page.partition(begin)
    marker, _, tail = rest.partition("\n")
    _, found_end, foot = tail.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{name} lacks {begin} or {end}")
    return f"{head}{begin}{marker}\n{table}{end}{foot}"


def _values(path: str, schema: Json, values: Any) -> Iterator[tuple[str, Any, str]]:
    for key, child in schema["properties"].items():
        if key not in values:
            continue
        where = f"{path}.{key}".lstrip(".")
        if "properties" in child:
            yield from _values(where, child, values[key])
        else:
            yield where, values[key], child["description"]


def _sections(path: str, schema: Json) -> Iterator[str]:
    """A heading and a table for an object, then for each object in it."""
    yield f"## {path}\n"
    yield schema.get("description", "") + "\n"
    required = schema.get("required", ())
    rows = []
    inner = []
    for key, field in schema["properties"].items():
        child = field.get("items", field)
        if "properties" in child:
            inner.append((f"{path}.{key}{'[]' if 'items' in field else ''}", child))
        default = "required" if key in required else _default(field.get("default"))
        rows.append((f"`{key}`", _allowed(field), default, field.get("description", "")))
    yield _table(("Field", "Type", "Default", "Meaning"), rows)
    for where, child in inner:
        yield from _sections(where, child)


def _allowed(field: Json) -> str:
    """Type and bounds in words."""
    if field.get("enum"):
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    kind = str(field["type"])
    if kind == "array":
        return f"list of {_allowed(field['items'])}"
    if "additionalProperties" in field:
        return f"map to {_allowed(field['additionalProperties'])}"
    bounds = [_bound(field, "minimum", "≥", ">"), _bound(field, "maximum", "≤", "<")]
    bounds += [rule["message"].removeprefix("must be ") for rule in field.get("x-kubernetes-validations", ())]
    return ", ".join([kind, *(bound for bound in bounds if bound)])


def _bound(field: Json, key: str, inclusive: str, exclusive: str) -> str:
    if key not in field:
        return ""
    sign = exclusive if field.get(f"exclusive{key.capitalize()}") else inclusive
    return f"{sign} {field[key]:g}" if isinstance(field[key], float) else f"{sign} {field[key]}"


def _default(value: Any) -> str:
    return "" if value is None or value in ({}, "") or value == [] else f"`{json.dumps(value, ensure_ascii=False)}`"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(head)]
    lines += [("---",) * len(lines[0]), *(tuple(_cell(cell) for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
