"""Fresh reads of everything that belongs to one job. Nothing here writes."""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.config import config_name, is_config_map
from dpo_operator.builders.guards import build_guards, build_open_budget
from dpo_operator.builders.service import build_service, leads_alike
from dpo_operator.builders.shape import SIZED
from dpo_operator.builders.volume import claim_name, input_claims
from dpo_operator.kube.client import ApiError, Client, resource_of
from dpo_operator.planning.objects import ChildJob, ChildPod, Claim, Guard, Support, owner_uid
from dpo_operator.planning.observed import Observed
from dpo_operator.queueing.key import Key
from dpo_operator.queueing.stopwatch import Stopwatch
from dpo_operator.reconcile.memory import ChildObjects, JobMemory
from dpo_operator.reconcile.ownership import is_leftover

Json = dict[str, Any]

# The Service and ConfigMap of an attempt that runs are read again after this time: nothing needs them before the next attempt.
SUPPORT_SECONDS = 300.0
# Called with kind, namespace and items of each list; namespace None: all namespaces.
OnList = Callable[[str, str | None, Sequence[Json]], None]


async def observe(
    client: Client, job: DPOJob, status: DPOJobStatus, memory: JobMemory, *, max_age: float, on_list: OnList
) -> Observed:
    """Jobs and pods of a job as the API server holds them now, with its claim, Service and ConfigMap.

    max_age: how old the cached claim may be, seconds; with 0 the Service and ConfigMap are read, too. on_list: called with each list.
    """
    namespace, uid = job.metadata.namespace, job.metadata.uid
    selector = f"{names.LABEL_UID}={uid}"
    jobs, pods, child_objects = await asyncio.gather(
        client.list("Job", namespace, selector),
        client.list("Pod", namespace, selector),
        _child_objects(client, job, status, memory.child_objects, max_age),
    )
    on_list("Job", namespace, jobs)
    on_list("Pod", namespace, pods)
    memory.child_objects = child_objects
    memory.versions = frozenset(str(raw["metadata"]["resourceVersion"]) for raw in (*jobs, *pods))
    durations = _Durations(memory.pods)
    own_jobs = [durations.job(raw) for raw in memory.own.own_jobs(jobs, uid)]
    own_pods = [durations.pod(raw) for raw in memory.own.own_pods(pods, status)]
    seen = Observed(
        jobs=tuple(child for child in own_jobs if not _is_mirror(child)),
        pods=tuple(pod for pod in own_pods if not _is_mirror(pod)),
        mirrors=tuple(child for child in own_jobs if _is_mirror(child)),
        mirror_pods=tuple(pod for pod in own_pods if _is_mirror(pod)),
        claim=child_objects.claim,
        support=child_objects.support,
        refused=memory.refused,
        claim_token=memory.claim_token,
    )
    durations.forget_the_rest()
    return seen


async def observe_leftovers(client: Client, key: Key, stopwatch: Stopwatch, except_uid: str) -> tuple[ChildPod, ...]:
    """Terminating pods of deleted jobs of this name. except_uid: of the current job, whose pods are excluded."""
    pods = await client.list(
        "Pod", key.namespace, f"{names.LABEL_JOB}={key.name},{names.LABEL_UID}!={except_uid or 'none'}"
    )
    durations = _Durations(stopwatch)
    seen = tuple(durations.pod(raw) for raw in pods if is_leftover(raw))
    durations.forget_the_rest()
    return seen


async def find_leftovers(client: Client, namespaces: Sequence[str | None]) -> set[Key]:
    """Keys of jobs with terminating pods. Page by page: jobs that have ended keep their pods."""
    return {
        Key(pod["metadata"]["namespace"], name)
        for namespace in namespaces
        async for page in client.pages("Pod", namespace, names.LABEL_JOB)
        for pod in page
        if is_leftover(pod) and (name := names.job_of(pod))
    }


async def observe_just_accepted(client: Client, job: DPOJob, memory: JobMemory) -> Observed:
    """A job whose acceptance was just written: of what carries its UID nothing can exist, and only a claim may be there.

    An object of somebody else that has one of the names is found when ours is to be made.
    """
    claim = await client.get("PersistentVolumeClaim", job.metadata.namespace, claim_name(job))
    now = time.monotonic()
    memory.child_objects = ChildObjects(Claim.from_raw(claim) if claim else None, (), now, now)
    return Observed(claim=memory.child_objects.claim, guards=(), claim_token=memory.claim_token)


async def observe_inputs(client: Client, job: DPOJob) -> dict[str, Claim | None]:
    """The claims that prepare mounts, without the volume."""
    claims = input_claims(job)
    found = await asyncio.gather(
        *(client.get("PersistentVolumeClaim", job.metadata.namespace, name) for name in claims)
    )
    return {name: Claim.from_raw(raw) if raw else None for name, raw in zip(claims, found, strict=True)}


async def observe_guards(client: Client, job: DPOJob, phase: names.Phase) -> tuple[Guard, ...]:
    """The guards of a phase that exist."""
    wanted = [*build_guards(job, phase), *([build_open_budget(job)] if phase in SIZED else [])]
    wanted = list({(guard["kind"], guard["metadata"]["name"]): guard for guard in wanted}.values())
    namespace = job.metadata.namespace
    found = await asyncio.gather(*(_guard(client, guard, namespace) for guard in wanted))
    return tuple(Guard.from_raw(raw) for raw in found if raw is not None)


async def _guard(client: Client, wanted: Json, namespace: str) -> Json | None:
    try:
        return await client.get(resource_of(wanted), namespace, wanted["metadata"]["name"])
    except ApiError as error:
        # The operator has no right to PodGroups, or the project is not installed, which the API server tells without a Status.
        # Treat the PodGroup as absent: creating it fails and is reported, or finds the one that is there.
        if error.code in (403, 404) and wanted["kind"] == "PodGroup":
            return None
        raise


async def _child_objects(
    client: Client, job: DPOJob, status: DPOJobStatus, known: ChildObjects | None, max_age: float
) -> ChildObjects:
    namespace, name = job.metadata.namespace, job.metadata.name
    now = time.monotonic()
    if status.state is State.COMPLETE:
        # It never runs again and writes nothing. Most jobs of a cluster are complete, and each is looked at after a start.
        return ChildObjects(None, (), now, now)
    if known is not None and max_age > 0 and now - known.read_at < SUPPORT_SECONDS:
        if known.claim is not None and known.claim.bound and now - known.claim_read_at < max_age:
            return known
        # Read unbound claims every time: claims are not watched.
        claim = await client.get("PersistentVolumeClaim", namespace, claim_name(job))
        return replace(known, claim=Claim.from_raw(claim) if claim else None, claim_read_at=now)
    claim, service, config = await asyncio.gather(
        client.get("PersistentVolumeClaim", namespace, claim_name(job)),
        client.get("Service", namespace, names.service_name(name)),
        client.get("ConfigMap", namespace, config_name(job)),
    )
    return ChildObjects(
        Claim.from_raw(claim) if claim else None,
        (
            *([Support("Service", owner_uid(service), leads_alike(service, build_service(job)))] if service else []),
            *([Support("ConfigMap", owner_uid(config), is_config_map(job, config))] if config else []),
        ),
        now,
        now,
    )


def _is_mirror(child: ChildJob | ChildPod) -> bool:
    """Whether it copies checkpoints to the mirror, beside the phases."""
    return child.phase == "mirror"


def with_created(seen: Observed, raw: Json) -> Observed:
    """The observation, plus an object that was just created."""
    match raw["kind"]:
        case "Job":
            child = ChildJob.from_raw(raw)
            if _is_mirror(child):
                return replace(seen, mirrors=(*seen.mirrors, child))
            return replace(seen, jobs=(*seen.jobs, child))
        case "PersistentVolumeClaim":
            return replace(seen, claim=Claim.from_raw(raw))
        case "Service" | "ConfigMap" as kind:
            return replace(seen, support=(*seen.support, Support(kind, owner_uid(raw))))
        case _:
            return replace(seen, guards=(*(seen.guards or ()), Guard.from_raw(raw)))


class _Durations:
    """Adds the time since failures and deletions were first observed."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._facts: set[Hashable] = set()

    def job(self, raw: Json) -> ChildJob:
        child = ChildJob.from_raw(raw)
        return ChildJob.from_raw(raw, failed_seconds=self._since("failed", child.uid)) if child.failed else child

    def pod(self, raw: Json) -> ChildPod:
        pod = ChildPod.from_raw(raw)
        if not pod.ended and not pod.deleting:
            return pod
        return ChildPod.from_raw(
            raw,
            deleting_seconds=self._since("deleting", pod.uid) if pod.deleting else 0.0,
            failed_seconds=self._since("ended", pod.uid) if pod.ended else 0.0,
        )

    def _since(self, what: str, uid: str) -> float:
        self._facts.add((what, uid))
        return self._stopwatch.seconds((what, uid))

    def forget_the_rest(self) -> None:
        self._stopwatch.keep(self._facts)
