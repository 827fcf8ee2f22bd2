"""Commands that steer a DPOJob in a cluster: submit, suspend, resume, retry, delete."""

import secrets
from pathlib import Path

from dpo_operator.api import names
from dpo_operator.api.status import State
from dpo_operator.cli.kubectl import RESOURCE, ClusterError, Kubectl, valid_name


def submit(kubectl: Kubectl, file: Path) -> str:
    """Create the objects of a file. Returns what was done; raises ClusterError, also when an object of its names exists."""
    return kubectl.call("create", f"--filename={file}").strip()


def suspend(kubectl: Kubectl, name: str) -> str:
    """Stop a job's pods after a save. Returns what was done; raises ClusterError."""
    state = _state(kubectl, name)
    if state in (State.COMPLETE, State.FAILED):
        raise ClusterError(f"{name} is {state}: nothing is running")
    kubectl.merge(name, {"spec": {"suspend": True}})
    return f"{name} is being suspended; its pods stop after a save"


def resume(kubectl: Kubectl, name: str) -> str:
    """Resume a suspended job, or retry a failed one. Returns what was done; raises ClusterError."""
    state = _state(kubectl, name)
    if state == State.COMPLETE:
        raise ClusterError(f"{name} is {state}: there is nothing to resume")
    if state == State.FAILED:
        return _retry(kubectl, name)
    kubectl.merge(name, {"spec": {"suspend": False}})
    return f"{name} was resumed"


def retry(kubectl: Kubectl, name: str) -> str:
    """Retry a failed job from its last checkpoint. Returns what was done; raises ClusterError."""
    state = _state(kubectl, name)
    if state != State.FAILED:
        raise ClusterError(f"{name} is {state or 'not reconciled yet'}: only a failed job can be retried")
    return _retry(kubectl, name)


def delete(kubectl: Kubectl, name: str) -> str:
    """Delete a job, and say what stays. Returns what was done; raises ClusterError."""
    job = kubectl.job(name)
    volume = ((job.get("spec") or {}).get("checkpoint") or {}).get("volume") or {}
    claim = volume.get("claimName") or names.volume_claim_name(name)
    kubectl.call("delete", RESOURCE, valid_name(name), "--wait=false")
    if volume.get("claimName") is None and volume.get("retention") == "Delete":
        return f"{name} is being deleted, with its claim {claim} and everything on it"
    return f"{name} is being deleted; its files stay on the claim {claim}"


def _retry(kubectl: Kubectl, name: str) -> str:
    metadata = {"annotations": {names.ANNOTATION_RETRY: secrets.token_hex(8)}}
    kubectl.merge(name, {"metadata": metadata, "spec": {"suspend": False}})
    return f"{name} is retried from its last checkpoint"


def _state(kubectl: Kubectl, name: str) -> str:
    return str((kubectl.job(name).get("status") or {}).get("state") or "")
