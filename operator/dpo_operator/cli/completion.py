"""Shell completion: names of jobs, and the program that kubectl asks to complete `kubectl dpo`."""

import os
import subprocess
import sys

import typer

from dpo_operator.cli.kubectl import RESOURCE, Kubectl

# A shell that waits longer annoys.
ANSWER_SECONDS = 3
_NO_FILES = ":4"


def job_names(context: typer.Context, incomplete: str) -> list[str]:
    """Names of DPOJobs that begin so; none when the cluster does not answer."""
    given = {key: context.params.get(key) for key in ("namespace", "context", "kubeconfig")}
    argv = Kubectl(**given).argv("get", RESOURCE, "--output=name", f"--request-timeout={ANSWER_SECONDS}s")
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS + 1)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = [line.partition("/")[2] for line in done.stdout.splitlines()]
    return [name for name in found if name.startswith(incomplete)]


def for_kubectl() -> None:
    """kubectl runs `kubectl_complete-dpo WORDS…`, and reads one completion a line and a code that says: no files."""
    from dpo_operator.cli.main import app

    words = ["kubectl-dpo", *sys.argv[1:]]
    os.environ["_KUBECTL_DPO_COMPLETE"] = "complete_bash"
    # Words of an option or a name hold no blanks.
    os.environ["COMP_WORDS"] = " ".join(words)
    os.environ["COMP_CWORD"] = str(len(words) - 1)
    sys.argv = ["kubectl-dpo"]
    try:
        app(prog_name="kubectl-dpo")
    except SystemExit:
        print(_NO_FILES)
