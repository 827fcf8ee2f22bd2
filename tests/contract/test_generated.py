"""Generated files are what the code says, and the CRD is what the API server and kubectl can take."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from dpo_operator.api import conditions
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.rules import spec as rules
from dpo_operator.api.types import DPOJob
from dpo_operator.cli.jobfile import JobFileError, read
from dpo_operator.generate import crd
from dpo_operator.generate import files as generate
from dpo_operator.generate.dashboards.catalogue import catalogue
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.contract

BAD = sorted((REPOSITORY / "examples" / "bad").glob("*.yaml"))


def nodes(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a structural schema with its path."""
    yield path, schema
    for key, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


def test_no_generated_file_is_outdated() -> None:
    assert generate.outdated_files() == []


def test_a_changed_file_is_found_and_mended(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / generate.CHART, tmp_path / generate.CHART)
    (tmp_path / "docs").mkdir()
    shutil.copy(REPOSITORY / generate.DIAGNOSIS, tmp_path / generate.DIAGNOSIS)
    for path, text in generate.files(tmp_path).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    assert generate.outdated_files(tmp_path) == []
    changed = tmp_path / generate.CRD_FILE
    changed.write_text(changed.read_text(encoding="utf-8").replace("maximum: 1024", "maximum: 4096"), encoding="utf-8")
    assert generate.outdated_files(tmp_path) == [generate.CRD_FILE]
    assert generate.write(tmp_path) == [generate.CRD_FILE]
    assert generate.outdated_files(tmp_path) == []


def test_everything_that_a_user_writes_is_bounded() -> None:
    for path, node in nodes(crd.spec_schema(), "spec"):
        match node.get("type"):
            case "string":
                assert "enum" in node or "maxLength" in node, path
            case "integer" | "number":
                assert "maximum" in node or "x-kubernetes-validations" in node, path
                assert "minimum" in node, path
            case "array":
                assert "maxItems" in node, path
            case "object":
                assert "properties" in node or "maxProperties" in node, path
            case "boolean":
                pass
            case other:
                assert node.get("x-kubernetes-int-or-string"), f"{path}: {other}"


def test_everything_that_a_user_writes_is_described() -> None:
    for path, node in nodes(crd.spec_schema(), "spec"):
        assert node.get("description") or path.endswith("[]"), path


def test_each_default_stands_once() -> None:
    for path, node in nodes(crd.spec_schema(), "spec"):
        if "properties" in node:
            assert node.get("default", {}) == {}, path
    assert not any("default" in node for _, node in nodes(crd.status_schema(), "status"))


def test_columns_show_fields_that_exist() -> None:
    shown = {f'.status.conditions[?(@.type=="{type_}")].status' for type_ in conditions.TYPES}
    known = {f".{path}" for path, _ in nodes(crd.status_schema(), "status")} | {".metadata.creationTimestamp"} | shown
    assert {path for _, _, path, _ in crd.COLUMNS} <= known


def test_rules_point_to_fields_that_exist() -> None:
    known = {path for path, _ in nodes(crd.spec_schema(), "spec")}
    assert {f"spec.{rule.field}" for rule in rules.SPEC_RULES} <= known
    assert {f"spec.{field}" for field in rules.IMMUTABLE_FIELDS} <= known


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "x", "multipleOf": 3},
        {"type": "object", "properties": {"a": {"oneOf": [{"type": "string"}]}}},
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "object"},
    ],
)
def test_a_constraint_without_a_translation_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        crd.structural(schema)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "number", "exclusiveMinimum": 0}, {"minimum": 0, "exclusiveMinimum": True}),
        ({"type": "number", "maximum": 1.0}, {"maximum": 1.0}),
        (
            {"type": "number", "exclusiveMaximum": 0.5},
            {"x-kubernetes-validations": [{"rule": "self < 0.5", "message": "must be less than 0.5"}]},
        ),
        ({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}], "default": None}, {"maxLength": 3}),
        ({"type": "integer", "maximum": 7}, {"maximum": 7, "format": "int32"}),
        ({"type": "integer", "maximum": 2**40}, {"maximum": 2**40, "format": "int64"}),
    ],
)
def test_what_json_schema_and_openapi_spell_differently(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    translated = crd.structural(schema)
    translated.pop("type", None)
    assert translated == expected


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_local_run_refuses_what_the_api_server_refuses(file: Path) -> None:
    with pytest.raises(JobFileError) as refusal:
        read(file)
    # The last part of the field that the API server names; a missing or unknown field has no value to point to.
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert document["kind"] == "DPOJob"
    first = next(line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# expect: "))
    field = first.removeprefix("# expect: ").removeprefix("unknown field ").strip('"').split(":")[0].split("[")[0]
    assert field in str(refusal.value)


def test_every_rule_has_an_example_that_breaks_it_alone() -> None:
    broken: dict[str, list[str]] = {}
    for file in BAD:
        try:
            job = DPOJob.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
        except ValidationError:
            continue  # an example of one wrong field
        (message,) = rules.violations(job)
        broken.setdefault(message.partition(" (found ")[0], []).append(file.stem)
    assert set(broken) == {f"spec.{rule.field}: {rule.message}" for rule in rules.SPEC_RULES}


def test_the_reference_pages_name_everything() -> None:
    folder = REPOSITORY / "docs" / "reference"
    page = (folder / "dpojob.md").read_text(encoding="utf-8")
    for path, node in nodes(crd.spec_schema(), "spec"):
        if node.get("description") and not path.endswith("[]"):
            assert f"`{path.split('.')[-1].removesuffix('[]')}`" in page or f"## {path}" in page, path
    assert all(kind in page for kind in conditions.TYPES)
    codes = (folder / "exit-codes.md").read_text(encoding="utf-8")
    assert all(f"| {int(code)} |" in codes for code in ExitCode if code is not ExitCode.OK)
    metrics = (folder / "metrics.md").read_text(encoding="utf-8")
    assert all(f"`{m.name}`" in metrics for m in catalogue() if not m.name.startswith("process_"))
