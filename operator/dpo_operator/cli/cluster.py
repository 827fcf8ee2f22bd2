"""Commands on a DPOJob in a cluster, through the installed kubectl: suspend, resume, retry."""

import json
import re
import secrets
import subprocess
from dataclasses import dataclass
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.rules.spec import NAME_MESSAGE, NAME_PATTERN
from dpo_operator.api.status import State

RESOURCE = f"{names.PLURAL}.{names.GROUP}"


class ClusterError(Exception):
    """A command that can't be carried out. The message is for the user."""


@dataclass(frozen=True)
class Kubectl:
    """Where kubectl acts; None is its own default."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None

    def suspend(self, name: str) -> str:
        """Stop a job's pods after a save. Returns what was done; raises ClusterError."""
        state = self._state(name)
        if state in (State.COMPLETE, State.FAILED):
            raise ClusterError(f"{name} is {state}: nothing is running")
        self._merge(name, {"spec": {"suspend": True}})
        return f"{name} is being suspended; its pods stop after a save"

    def resume(self, name: str) -> str:
        """Resume a suspended job, or retry a failed one. Returns what was done; raises ClusterError."""
        state = self._state(name)
        if state == State.COMPLETE:
            raise ClusterError(f"{name} is {state}: there is nothing to resume")
        if state == State.FAILED:
            return self._retry(name)
        self._merge(name, {"spec": {"suspend": False}})
        return f"{name} was resumed"

    def retry(self, name: str) -> str:
        """Retry a failed job from its last checkpoint. Returns what was done; raises ClusterError."""
        state = self._state(name)
        if state != State.FAILED:
            raise ClusterError(f"{name} is {state or 'not reconciled yet'}: only a failed job can be retried")
        return self._retry(name)

    def _retry(self, name: str) -> str:
        metadata = {"annotations": {names.ANNOTATION_RETRY: secrets.token_hex(8)}}
        self._merge(name, {"metadata": metadata, "spec": {"suspend": False}})
        return f"{name} is retried from its last checkpoint"

    def _state(self, name: str) -> str:
        found = json.loads(self._call("get", RESOURCE, _valid_name(name), "--output=json"))
        return str((found.get("status") or {}).get("state") or "")

    def _merge(self, name: str, body: dict[str, Any]) -> None:
        self._call("patch", RESOURCE, _valid_name(name), "--type=merge", f"--patch={json.dumps(body)}")

    def _call(self, *arguments: str) -> str:
        options = [
            f"--{option}={value}"
            for option, value in (
                ("namespace", self.namespace), ("context", self.context), ("kubeconfig", self.kubeconfig)
            )
            if value is not None
        ]  # fmt: skip
        try:
            done = subprocess.run(["kubectl", *options, *arguments], capture_output=True, text=True, check=False)
        except OSError as error:
            raise ClusterError(
                f"kubectl can't be started: {error.strerror}; install it and put it on the PATH"
            ) from error
        if done.returncode != 0:
            raise ClusterError(done.stderr.strip() or f"kubectl ended with {done.returncode}")
        return done.stdout


def _valid_name(name: str) -> str:
    """A valid name, which kubectl can't parse as an option. Raises ClusterError."""
    if len(name) > names.MAX_JOB_NAME or not re.fullmatch(NAME_PATTERN, name):
        raise ClusterError(f"{name!r} is not a name of a DPOJob: {NAME_MESSAGE}")
    return name
