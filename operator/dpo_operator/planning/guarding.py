"""Repairs of guards (PodDisruptionBudget, NetworkPolicy, PodGroup) that are missing or out of date."""

from collections.abc import Mapping
from typing import Any

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
        elif patch := correction(found.spec, wanted["spec"], keeps_more=found.kind == "PodGroup"):
            actions.append(Patch({**wanted, "spec": patch}, found.uid))
    return tuple(actions)


def correction(found: Mapping[str, Any], wanted: Mapping[str, Any], *, keeps_more: bool = False) -> dict[str, Any]:
    """JSON merge patch that makes the spec that was found say what is wanted; empty if it does.

    keeps_more: fields that are not wanted stay, as defaults of a foreign CRD do. In the specs of Kubernetes' own kinds there are no
    others than those of ours: one more could open a policy.
    """
    patch: dict[str, Any] = {}
    for key in found.keys() | wanted.keys():
        here, there = found.get(key), wanted.get(key)
        # The API server leaves out empty lists; an empty selector is another matter.
        if here == there or (here in (None, []) and there in (None, [])):
            continue
        if there is None:
            if not keeps_more:
                patch[key] = None
        elif isinstance(here, Mapping) and isinstance(there, Mapping):
            if inner := correction(here, there, keeps_more=keeps_more):
                patch[key] = inner
        else:
            patch[key] = there
    return patch


def obstacle(job: DPOJob, seen: Observed) -> Reason | None:
    """NameConflict if an object with a guard's name has another owner; else None."""
    for guard in seen.guards or ():
        if guard.owner_uid != job.metadata.uid:
            return c.NAME_CONFLICT, (
                f"{guard.kind} {guard.name} exists and does not belong to this job (UID {job.metadata.uid}). Delete it, or give the "
                "job another name."
            )
    return None
