"""What all child objects share: labels and the owner."""

from typing import Any

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob

Manifest = dict[str, Any]


def build_labels(
    job: DPOJob, phase: names.PodKind | None = None, attempt: int | None = None, number: int = 0
) -> dict[str, str]:
    """Labels of a child; phase, attempt, and number of the round or leg where it belongs to one."""
    labels = {
        names.LABEL_NAME: "dpojob",
        names.LABEL_PART_OF: names.PART_OF,
        names.LABEL_MANAGED_BY: names.PART_OF,
        names.LABEL_JOB: job.metadata.name,
        names.LABEL_UID: job.metadata.uid,
    }
    if phase is not None:
        labels[names.LABEL_PHASE] = phase
    if attempt is not None:
        labels[names.LABEL_ATTEMPT] = str(attempt)
    if number:
        labels[names.LABEL_LEG if job.spec.sweep is not None else names.LABEL_ROUND] = str(number)
    return labels


def rank_labels(job: DPOJob) -> dict[str, str]:
    """Selector for this job's training pods of any attempt."""
    return {names.LABEL_UID: job.metadata.uid, names.LABEL_PHASE: "train"}


def build_owner_reference(job: DPOJob) -> dict[str, Any]:
    """Makes the garbage collector delete the child with its DPOJob, also while the operator is down.

    blockOwnerDeletion stays false: a foreground deletion need not wait, and the operator needs no right to finalizers.
    """
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def build_metadata(
    job: DPOJob,
    name: str,
    *,
    phase: names.PodKind | None = None,
    attempt: int | None = None,
    number: int = 0,
    owned: bool = True,
) -> dict[str, Any]:
    """metadata of a child."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": build_labels(job, phase, attempt, number),
    }
    if owned:
        metadata["ownerReferences"] = [build_owner_reference(job)]
    return metadata
