"""Commands that change jobs in a cluster: suspend, resume, retry."""

from collections.abc import Callable

import typer
from rich.markup import escape

from dpo_operator.cli import cluster
from dpo_operator.cli.inspect import Context, Kubeconfig, Name, Namespace, errors, no_traceback
from dpo_operator.cli.kubectl import Kubectl

app = typer.Typer()


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


def _done(what: Callable[[Kubectl], str], namespace: str | None, context: str | None, kubeconfig: str | None) -> None:
    with no_traceback():
        errors.print(escape(what(Kubectl(namespace, context, kubeconfig))), soft_wrap=True)
