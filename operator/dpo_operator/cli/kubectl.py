"""The installed kubectl, which knows every way to log in to a cluster."""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.rules.spec import NAME_MESSAGE, NAME_PATTERN
from dpo_operator.api.text import shown

RESOURCE = f"{names.PLURAL}.{names.GROUP}"
# Of one request that is not a watch.
ANSWER_SECONDS = 30
# Requests in a row that may fail while a command follows a job: a minute if each fails at once, as while an API server restarts.
FAILED_IN_A_ROW = 30
# What kubectl says of a request that fails again, whenever it is sent.
_LASTING = ("(NotFound)", "(Forbidden)", "(Unauthorized)")
# What kubectl says, and what that means for a user; the first that matches is added to kubectl's own words.
_MEANINGS = (
    ("localhost:8080", "no cluster is configured: set KUBECONFIG, or name a file with --kubeconfig"),
    ("resource type", f"the cluster does not know DPOJobs: install the operator, whose chart brings {RESOURCE}"),
    ("context was not found", "kubectl config get-contexts lists those that there are"),
    ("does not exist", "kubectl config get-contexts lists those that there are"),
    ("(Forbidden)", "your account may not do this: ask the administrator for the right"),
    ("(Unauthorized)", "the cluster does not take your credentials: log in again"),
    ("You must be logged in", "the cluster does not take your credentials: log in again"),
    ("(AlreadyExists)", "give the job another name, or delete the old one first: kubectl dpo delete NAME"),
    ("(NotFound)", "`kubectl dpo list -A` shows every DPOJob that there is"),
    ("refused", "the API server can't be reached: check the address, and that it runs"),
    ("no such host", "the API server can't be reached: check the address and the network"),
    ("i/o timeout", "the API server can't be reached: check the network"),
    ("deadline exceeded", f"the API server gave no answer in {ANSWER_SECONDS} s: check the network"),
    ("Client.Timeout", f"the API server gave no answer in {ANSWER_SECONDS} s: check the network"),
)


class ClusterError(Exception):
    """A command that can't be carried out. The message is for the user."""


class NoAnswerError(ClusterError):
    """The cluster gave no answer to a request, and may give one soon."""


class Patience:
    """Of a command that follows a job: it outlives a network or an API server that is away for a while."""

    def __init__(self, note: Callable[[str], None]) -> None:
        """note: prints a line for the user."""
        self._note, self._left = note, 0

    def answered(self) -> None:
        """The cluster has answered. Before the first answer any failure ends the command, since the command or the kubeconfig may be wrong."""
        self._left = FAILED_IN_A_ROW

    def failed(self, error: NoAnswerError) -> None:
        """A request has failed. Raises the error when too many in a row did."""
        if self._left == 0:
            raise error
        if self._left == FAILED_IN_A_ROW:
            self._note(f"no answer, asking again: {error}")
        self._left -= 1


@dataclass(frozen=True)
class Kubectl:
    """Where kubectl acts; None is its own default."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None

    def in_namespace_of(self, job: dict[str, Any]) -> "Kubectl":
        """The same in a job's namespace."""
        return replace(self, namespace=str(job["metadata"].get("namespace", "default")))

    @property
    def options(self) -> list[str]:
        """Options that every command gets."""
        given = (("namespace", self.namespace), ("context", self.context), ("kubeconfig", self.kubeconfig))
        return [f"--{option}={value}" for option, value in given if value is not None]

    def argv(self, *arguments: str) -> list[str]:
        """The command line."""
        return ["kubectl", *self.options, *arguments]

    def call(self, *arguments: str, text: str | None = None) -> str:
        """Run a command to its end; what it printed. text: for its standard input. Raises ClusterError."""
        try:
            done = subprocess.run(
                self.argv(*arguments, f"--request-timeout={ANSWER_SECONDS}s"),
                capture_output=True, text=True, check=False, input=text,
            )  # fmt: skip
        except OSError as error:
            raise not_started(error) from error
        if done.returncode != 0:
            raise refused(done.stderr, done.returncode)
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a list of objects. Raises ClusterError."""
        return _object(self.call("get", *arguments, "--output=json"))

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """The objects of a list. Raises ClusterError."""
        found: list[dict[str, Any]] = self.get(*arguments).get("items") or []
        return found

    def job(self, name: str) -> dict[str, Any]:
        """A DPOJob. Raises ClusterError."""
        return self.get(RESOURCE, valid_name(name))

    def merge(self, name: str, body: dict[str, Any]) -> None:
        """Change a DPOJob. Raises ClusterError."""
        self.call("patch", RESOURCE, valid_name(name), "--type=merge", f"--patch={json.dumps(body)}")


def not_started(error: OSError) -> ClusterError:
    """kubectl itself is missing."""
    return ClusterError(f"kubectl can't be started: {error.strerror}; install it and put it on the PATH")


def refused(said: str, code: int) -> ClusterError:
    """What a kubectl that failed with these words and this exit status means."""
    kind = ClusterError if any(words in said for words in _LASTING) else NoAnswerError
    return kind(meaning(said) or f"kubectl ended with {code}")


def meaning(said: str) -> str:
    """kubectl's words, with what to do about them where that is known. One line."""
    lines = [line for line in said.splitlines() if line.strip()]
    text = shown(lines[-1]) if lines else ""
    hint = next((hint for part, hint in _MEANINGS if part in said), "")
    return f"{text.rstrip('.')}; {hint}" if hint else text


def valid_name(name: str) -> str:
    """A valid name, which kubectl can't parse as an option. Raises ClusterError."""
    if len(name) > names.MAX_JOB_NAME or not re.fullmatch(NAME_PATTERN, name):
        raise ClusterError(f"{name!r} is not a name of a DPOJob: {NAME_MESSAGE}")
    return name


def of_job(job: dict[str, Any], attempt: tuple[str, int] | None = None) -> str:
    """The argument that selects the children of a job. attempt: phase and number, for those of one attempt."""
    labels = [f"{names.LABEL_UID}={job['metadata'].get('uid', '')}"]
    if attempt is not None:
        labels += [f"{names.LABEL_PHASE}={attempt[0]}", f"{names.LABEL_ATTEMPT}={attempt[1]}"]
    return f"--selector={','.join(labels)}"


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ClusterError(f"kubectl answered with something else than JSON: {shown(text, 200)}") from error
    if not isinstance(found, dict):
        raise ClusterError(f"kubectl answered with something else than an object: {shown(text, 200)}")
    return found
