"""Commands that look at jobs: why."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from dpo_operator.api import exitcodes
from dpo_operator.cli import clustercase, localcase
from dpo_operator.cli.kubectl import ClusterError, Kubectl
from dpo_operator.explain.why import why as explained

app = typer.Typer()
errors = Console(stderr=True, highlight=False)


class Form(StrEnum):
    """Of an answer for programs."""

    JSON = "json"
    YAML = "yaml"


Name = Annotated[str, typer.Argument(help="Name of the DPOJob.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Default: that of kubectl's context.")]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig.")]
Kubeconfig = Annotated[str | None, typer.Option(help="File, as for kubectl.")]
Output = Annotated[Form | None, typer.Option("--output", "-o", help="Print for programs.")]


@contextmanager
def no_traceback() -> Iterator[None]:
    """Errors of the cluster as one line, with exit status 1."""
    try:
        yield
    except ClusterError as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from error


def show(document: Any, form: Form) -> None:
    """Print for programs."""
    if form is Form.JSON:
        print(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), end="")


@app.command()
def why(
    job: Annotated[str, typer.Argument(help="Name of a DPOJob in the cluster, or the work folder of a run.")],
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = None,
) -> None:
    """Say why a job is pending, restarting, failed, slow or not learning, what comes next, and what you can do."""
    in_cluster = (namespace, context, kubeconfig) != (None, None, None) or Path(sys.argv[0]).name.startswith("kubectl")
    folder = Path(job)
    if not in_cluster and localcase.is_run(folder):
        case = localcase.read_case(folder)
    elif not in_cluster and ("/" in job or folder.is_dir()):
        errors.print(
            f"[red]error:[/red] {escape(job)} is not the work folder of a run, such as runs/quickstart: it has none of "
            f"{', '.join(localcase.MARKS)}. For a DPOJob of that name in a cluster: kubectl dpo why NAME",
            soft_wrap=True,
        )
        raise typer.Exit(exitcodes.ExitCode.INPUT_NOT_FOUND)
    else:
        with no_traceback():
            case = clustercase.read_case(Kubectl(namespace, context, kubeconfig), job)
    explanation = explained(case)
    if output is not None:
        show(
            asdict(explanation)
            | {"findings": [f.model_dump(mode="json", by_alias=True) for f in case.status.findings]},
            output,
        )
        return
    Console(highlight=False).print(escape(explanation.text()), soft_wrap=True, end="")
