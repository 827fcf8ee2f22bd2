"""Writes the files that are generated from code: the CRD, the chart's copy of it, the dashboards and the reference pages.

python -m dpo_operator.generate           writes them
python -m dpo_operator.generate --check   changes nothing; exit status 1 and a list when one is outdated
python -m dpo_operator.generate queries [NAMESPACE JOB]
                                          prints every query of the dashboard, variables filled in
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from dpo_operator.api.allowed.environment import VARIABLES
from dpo_operator.generate import crd, reference
from dpo_operator.generate.dashboards import dashboard_queries, fleet, job

REPOSITORY = Path(__file__).resolve().parents[3]
CRD_FILE = Path("crds/dpo-operator.dev_dpojobs.yaml")
CHART = Path("charts/dpo-operator")
DIAGNOSIS = Path("docs/diagnosis.md")
NOTICE = "Made by `python -m dpo_operator.generate`; changes belong in operator/dpo_operator/"


def files(root: Path = REPOSITORY) -> dict[Path, str]:
    """Text of every generated file by its path from the repository's root.

    root: where the chart's values, which the chart's README lists, and the page with the table of limits are read.
    """
    chart = root / CHART
    values = yaml.safe_load((chart / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((chart / "values.schema.json").read_text(encoding="utf-8"))
    readme = (chart / "README.md").read_text(encoding="utf-8")
    return {
        CRD_FILE: f"# {NOTICE}api/.\n{_yaml(crd.crd())}",
        CHART / "templates" / "crd.yaml": _chart_crd(),
        CHART / "dashboards" / "dpo-job.json": json.dumps(job.dashboard(), indent=2) + "\n",
        CHART / "dashboards" / "dpo-operator.json": json.dumps(fleet.dashboard(), indent=2) + "\n",
        CHART / "environment.json": json.dumps(VARIABLES, indent=1) + "\n",
        CHART / "README.md": reference.with_values_table(readme, schema, values),
        DIAGNOSIS: reference.with_thresholds_table((root / DIAGNOSIS).read_text(encoding="utf-8")),
        Path("docs/reference/dpojob.md"): reference.dpojob_page(),
        Path("docs/reference/environment.md"): reference.environment_page(),
        Path("docs/reference/exit-codes.md"): reference.exit_codes_page(),
        Path("docs/reference/metrics.md"): reference.metrics_page(),
    }


def outdated_files(root: Path = REPOSITORY) -> list[Path]:
    """Generated files that are missing or differ from what the code generates now."""
    return [path for path, text in files(root).items() if _read(root / path) != text]


def write(root: Path = REPOSITORY) -> list[Path]:
    """Write the files that are missing or outdated and return their paths."""
    texts = files(root)
    changed = [path for path, text in texts.items() if _read(root / path) != text]
    for path in changed:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(texts[path], encoding="utf-8")
    return changed


def _chart_crd() -> str:
    """The CRD as a template: `helm upgrade` changes it, which it never does with a chart's crds/ folder."""
    whole = crd.crd()
    body = _yaml({"spec": whole["spec"]})
    if "{{" in body:
        raise ValueError("the CRD holds {{, which Helm would read as a template")
    return f"""\
{{{{- /* {NOTICE}api/. */ -}}}}
{{{{- if .Values.crds.enabled }}}}
apiVersion: {whole["apiVersion"]}
kind: {whole["kind"]}
metadata:
  name: {whole["metadata"]["name"]}
  labels:
    {{{{- include "dpo-operator.labels" . | nindent 4 }}}}
  {{{{- if .Values.crds.keep }}}}
  annotations:
    helm.sh/resource-policy: keep
  {{{{- end }}}}
{body}{{{{- end }}}}
"""


def _yaml(document: Any) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True)


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 when --check finds an outdated file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is outdated")
    parser.add_argument("what", nargs="?", choices=["queries"], help="print instead of writing")
    parser.add_argument("namespace", nargs="?", default="default")
    parser.add_argument("job", nargs="?", default="quickstart")
    chosen = parser.parse_args(arguments)
    if chosen.what == "queries":
        print("\n".join(dashboard_queries(chosen.namespace, chosen.job)))
        return 0
    if chosen.check:
        for path in (old := outdated_files()):
            print(f"outdated: {path}; run `make generate`", file=sys.stderr)
        return 1 if old else 0
    for path in write():
        print(f"wrote {path}")
    return 0
