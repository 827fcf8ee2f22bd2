"""Commands that change jobs in a cluster: submit, suspend, resume, retry, delete."""

from collections.abc import Callable
from pathlib import Path

import typer

from dpo_operator.cli import cluster
from dpo_operator.cli.checked import AllowEnv, JobFile, allowed, read_job, say, warn
from dpo_operator.cli.inspect import Context, Kubeconfig, Name, Namespace, no_traceback
from dpo_operator.cli.kubectl import Kubectl

app = typer.Typer()


@app.command()
def submit(
    file: JobFile,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    allow_env: AllowEnv = None,
) -> None:
    """Check a file and create its DPOJob, and whatever else is in it, in the cluster."""
    job = read_job(file, allowed(allow_env))
    warn(job, Path("claims"))
    _done(lambda kubectl: cluster.submit(kubectl, file), namespace, context, kubeconfig)
    where = f" -n {namespace}" if namespace else ""
    say(f"Watch it: kubectl dpo status {job.metadata.name}{where} -w")


@app.command()
def suspend(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Stop a DPOJob's pods after a save, and keep everything else."""
    _done(lambda kubectl: cluster.suspend(kubectl, name), namespace, context, kubeconfig)


@app.command()
def resume(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Resume a suspended DPOJob, or retry a failed one."""
    _done(lambda kubectl: cluster.resume(kubectl, name), namespace, context, kubeconfig)


@app.command()
def retry(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Retry a failed DPOJob from its last checkpoint."""
    _done(lambda kubectl: cluster.retry(kubectl, name), namespace, context, kubeconfig)


@app.command()
def delete(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Delete a DPOJob with its pods. Its claim stays, unless its retention is Delete."""
    _done(lambda kubectl: cluster.delete(kubectl, name), namespace, context, kubeconfig)


def _done(what: Callable[[Kubectl], str], namespace: str | None, context: str | None, kubeconfig: str | None) -> None:
    with no_traceback():
        say(what(Kubectl(namespace, context, kubeconfig)))
