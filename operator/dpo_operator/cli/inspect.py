"""Commands that look at jobs: why, list, status, logs, events."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from dpo_operator.api import exitcodes
from dpo_operator.api.status import FINAL_STATES, State
from dpo_operator.cli import clustercase, joblogs, localcase, statusview
from dpo_operator.cli.checked import say, say_error
from dpo_operator.cli.completion import job_names
from dpo_operator.cli.kubectl import RESOURCE, ClusterError, Kubectl, NoAnswerError, Patience
from dpo_operator.explain.case import Event, status_of
from dpo_operator.explain.why import why as explained

app = typer.Typer()
WATCH_SECONDS = 2.0
# Exit status of `status --watch` when the cluster gives no answer: 1 is a job that failed, and 2 a wrong option.
UNKNOWN = 3


class Form(StrEnum):
    """Of an answer for programs."""

    JSON = "json"
    YAML = "yaml"


Name = Annotated[str, typer.Argument(help="Name of the DPOJob.", autocompletion=job_names)]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Default: that of kubectl's context.")]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig.")]
Kubeconfig = Annotated[str | None, typer.Option(help="File, as for kubectl.")]
Output = Annotated[Form | None, typer.Option("--output", "-o", help="Print for programs.")]


@contextmanager
def no_traceback(code: int = 1) -> Iterator[None]:
    """Errors of the cluster as one line, with an exit status."""
    try:
        yield
    except ClusterError as error:
        say_error(str(error))
        raise typer.Exit(code) from error


def show(document: Any, form: Form) -> None:
    """Print for programs."""
    if form is Form.JSON:
        print(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), end="")


@app.command()
def why(
    job: Annotated[
        str,
        typer.Argument(help="Name of a DPOJob in the cluster, or the work folder of a run.", autocompletion=job_names),
    ],
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
        say_error(
            f"{job} is not the work folder of a run, such as runs/quickstart: it has none of "
            f"{', '.join(localcase.MARKS)}. For a DPOJob of that name in a cluster: kubectl dpo why NAME"
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


@app.command(name="list")
def list_jobs(
    namespace: Namespace = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")] = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = None,
) -> None:
    """List DPOJobs with their state, figures and health."""
    with no_traceback():
        found = Kubectl(None if everywhere else namespace, context, kubeconfig).get(
            RESOURCE, *(["--all-namespaces"] if everywhere else [])
        )
    if output is not None:
        show(found, output)
        return
    jobs = found.get("items") or []
    if not jobs:
        say("There are no DPOJobs." if everywhere else "There are no DPOJobs here; -A looks in all namespaces.")
        return
    print(statusview.listing(jobs, datetime.now(UTC), namespaces=everywhere))


@app.command()
def status(
    name: Name,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            "-w",
            help=f"Until the job ends; exits with 1 if it fails, {UNKNOWN} if the cluster can't be asked.",
        ),
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = None,
) -> None:
    """Show a DPOJob: progress, time left, figures, health, checkpoint and model."""
    kubectl = Kubectl(namespace, context, kubeconfig)
    with no_traceback(UNKNOWN if watch else 1):
        job = kubectl.job(name)
        if output is not None:
            show(job, output)
        elif not watch:
            print(statusview.as_text(statusview.details(job, datetime.now(UTC))))
        else:
            raise typer.Exit(0 if _watch(kubectl, name) == State.COMPLETE else 1)


def _watch(kubectl: Kubectl, name: str) -> State | None:
    """Show a job until it ends: a table in place on a terminal, else the lines that changed. Its last state."""
    history, terminal, before = statusview.History(), Console(highlight=False), dict[str, str]()
    patience = Patience(say)
    with Live(console=terminal, auto_refresh=False) if terminal.is_terminal else nullcontext() as live:
        while True:
            try:
                job = kubectl.job(name)
            except NoAnswerError as error:
                patience.failed(error)
                time.sleep(WATCH_SECONDS)
                continue
            patience.answered()
            found = status_of(job)
            history.add(found)
            rows = statusview.details(job, datetime.now(UTC), history)
            if live is not None:
                live.update(Text(statusview.as_text(rows)), refresh=True)
            else:
                changed = [(key, value) for key, value in rows if before.get(key) != value and key != "age"]
                if changed:
                    print(statusview.as_text(changed), flush=True)
                before = dict(rows)
            if found.state in FINAL_STATES:
                return found.state
            time.sleep(WATCH_SECONDS)


@app.command()
def logs(
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the job ends, also over attempts that begin meanwhile.")
    ] = False,
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="Of the attempt before, as long as its pods are there.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the logs of all pods of a DPOJob's attempt, each line with its phase and pod."""
    with no_traceback():
        joblogs.show(
            Kubectl(namespace, context, kubeconfig),
            name,
            follow=follow,
            previous=previous,
            say=lambda line: print(line, flush=True),
            note=say,
        )


@app.command()
def events(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = None,
) -> None:
    """Print the events of a DPOJob, its Jobs and its pods, oldest first."""
    with no_traceback():
        found = clustercase.all_events(Kubectl(namespace, context, kubeconfig), name)
    if output is not None:
        show({"apiVersion": "v1", "kind": "List", "items": found}, output)
        return
    now = datetime.now(UTC)
    read = sorted((Event.from_raw(each) for each in found), key=lambda event: event.last or now)
    if not read:
        say("No events: Kubernetes keeps them for an hour.")
        return
    rows = [
        (
            statusview.age(e.last, now),
            e.type,
            e.reason,
            e.about,
            f"{e.message}{f' ({e.count} times)' if e.count > 1 else ''}",
        )
        for e in read
    ]
    print(statusview.columns(rows, ("AGE", "TYPE", "REASON", "OBJECT", "MESSAGE")))
