"""Repairs of guards (PodDisruptionBudget, NetworkPolicy, PodGroup) that are missing or out of date."""

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.guards import build_guards, build_open_budget
from dpo_operator.builders.networks import Networks
from dpo_operator.planning.actions import Create, Patch
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.waiting import Reason


def repairs(job: DPOJob, phase: names.Phase, seen: Observed, networks: Networks) -> tuple[Create | Patch, ...]:
    """Creates and patches for the guards of a phase; empty when guards were not read in this pass."""
    if seen.guards is None:
        return ()
    present = {(guard.kind, guard.name): guard for guard in seen.guards}
    actions: list[Create | Patch] = []
    manifests = build_guards(job, phase, networks)
    spare = build_open_budget(job)
    if ("PodDisruptionBudget", spare["metadata"]["name"]) in present and all(
        m["kind"] != spare["kind"] for m in manifests
    ):
        # A gang's budget would block every eviction of a single pod.
        manifests = (*manifests, spare)
    for wanted in manifests:
        found = present.get((wanted["kind"], wanted["metadata"]["name"]))
        if found is None:
            actions.append(Create(wanted))
        elif found.digest != wanted["metadata"]["annotations"][names.ANNOTATION_DIGEST]:
            actions.append(Patch(wanted, found.uid))
    return tuple(actions)


def obstacle(job: DPOJob, seen: Observed) -> Reason | None:
    """NameConflict if an object with a guard's name has another owner; else None."""
    for guard in seen.guards or ():
        if guard.owner_uid != job.metadata.uid:
            return c.NAME_CONFLICT, (
                f"{guard.kind} {guard.name} exists and does not belong to this job (UID {job.metadata.uid}). Delete it, or give the "
                "job another name."
            )
    return None
