"""Reason and message of Running=False while an attempt waits. All of these resolve without a restart."""

from collections.abc import Sequence

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.allowed.allow import Allow
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.text import quoted
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.access import credentials_of, reaches_sources, registry_secret
from dpo_operator.builders.config import config_name
from dpo_operator.builders.pod import DOCKER_CONFIG
from dpo_operator.builders.shape import judge_key
from dpo_operator.builders.volume import claim_name, input_claims
from dpo_operator.planning import refusals
from dpo_operator.planning.actions import RetryPodCreation
from dpo_operator.planning.objects import ChildJob, ChildPod, Claim
from dpo_operator.planning.observed import Observed, Startup

Reason = tuple[str, str]

# Delay before events about pods that do not run are first read, and the interval after that.
FIRST_POLL_SECONDS = 5.0
POLL_SECONDS = 10.0
# After LONG_SECONDS poll less often, to spare the API server.
LONG_SECONDS = 300.0
LATE_POLL_SECONDS = 30.0
# Interval of forced retries of refused pods.
RETRY_PODS_SECONDS = 20.0

IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


def claim_obstacle(job: DPOJob, status: DPOJobStatus, claim: Claim | None) -> Reason | None:
    """Why the volume can't be used, or None. A missing claim is no obstacle if the operator creates it."""
    volume = job.spec.checkpoint.volume
    name = claim_name(job)
    if claim is None:
        if volume.claim_name is None:
            return None
        return c.VOLUME_NOT_FOUND, (
            f"checkpoint.volume.claimName names PersistentVolumeClaim {name}, which does not exist in namespace "
            f"{job.metadata.namespace}; create it and the job continues."
        )
    if claim.deleting:
        return c.VOLUME_TERMINATING, f"PersistentVolumeClaim {name} is being deleted."
    if volume.claim_name is None:
        if claim.owner_uid not in (None, job.metadata.uid):
            return c.VOLUME_TERMINATING, (
                f"PersistentVolumeClaim {name} belongs to a deleted object (UID {claim.owner_uid}) and should be garbage-collected."
            )
        if not is_own_claim(status, claim):
            return c.NAME_CONFLICT, (
                f"PersistentVolumeClaim {name} exists and was not made for this job. Create the job again with "
                f"checkpoint.volume.claimName: {name} to use it, or delete the claim."
            )
    modes = f"PersistentVolumeClaim {name} has access modes {', '.join(claim.access_modes) or 'none'}"
    if job.spec.nodes > 1 and "ReadWriteMany" not in claim.access_modes:
        needs = f"{job.spec.nodes} nodes need ReadWriteMany. Replace the claim, or set nodes: 1."
        return c.VOLUME_UNSUITABLE, f"{modes}; {needs}"
    if job.spec.checkpoint.mirror is not None and claim.access_modes == ("ReadWriteOncePod",):
        needs = "checkpoint.mirror needs a second pod beside the one that trains. Replace the claim by one with ReadWriteOnce or ReadWriteMany, or "
        return c.VOLUME_UNSUITABLE, f"{modes}; {needs}create the job again without checkpoint.mirror."
    if not any(mode.startswith("ReadWrite") for mode in claim.access_modes):
        return c.VOLUME_UNSUITABLE, f"{modes}; checkpoints are written to it. Replace the claim."
    return None


def is_own_claim(status: DPOJobStatus, claim: Claim) -> bool:
    """Whether the operator made the claim for this job: labels and owners are what anyone can write, the status is not."""
    if status.volume is not None:
        return claim.uid == status.volume.claim_uid
    return claim.token_digest in status.claim_tokens


def use_obstacle(job: DPOJob, phase: names.Phase, seen: Observed, allow: Allow) -> Reason | None:
    """Why a claim that the job names may not be used, or None: its owner must have said so, unless the administrator has.

    An input that does not exist is an obstacle too: it could be made later, without the label, while the pod waits for it.
    """
    named = {name: seen.inputs.get(name) for name in input_claims(job)} if phase == "prepare" else {}
    if job.spec.checkpoint.volume.claim_name is not None:
        named[claim_name(job)] = seen.claim
    for name, claim in named.items():
        where = f"PersistentVolumeClaim {name}, which the spec names,"
        if claim is None:
            return (
                c.VOLUME_NOT_FOUND,
                f"{where} does not exist in namespace {job.metadata.namespace}; create it and the job continues.",
            )
        if not claim.open and not allow.unlabelled_claims:
            return c.NOT_ALLOWED, (
                f'{where} has no label {names.LABEL_ALLOW_USE}: "true". If DPOJobs may use it: kubectl -n {job.metadata.namespace} '
                f"label pvc {name} {names.LABEL_ALLOW_USE}=true. The chart's value allow.unlabelledClaims allows all."
            )
    return None


def support_obstacle(job: DPOJob, seen: Observed) -> Reason | None:
    """NameConflict if the Service or ConfigMap of the job's name has another owner; else None."""
    for support in seen.support:
        is_file = support.kind == "ConfigMap"
        name = config_name(job) if is_file else names.service_name(job.metadata.name)
        if support.owner_uid != job.metadata.uid:
            return c.NAME_CONFLICT, (
                f"{support.kind} {name} exists and does not belong to this job (UID {job.metadata.uid}). Delete it, or "
                f"give the job another name."
            )
        if not support.as_made:
            why = (
                "its content is not the job's file, or it is not immutable"
                if is_file
                else "it does not lead to the job's pods alone"
            )
            return c.NAME_CONFLICT, (
                f"{support.kind} {name} was not made by this operator: {why}. Find out who made it, and delete it; the operator then "
                "makes it."
            )
    return None


def poll_seconds(startup: Startup) -> float:
    """Poll interval while pods do not run: the cause may appear only in Events, which are not watched."""
    if startup.waiting_seconds < FIRST_POLL_SECONDS:
        return FIRST_POLL_SECONDS - startup.waiting_seconds
    return POLL_SECONDS if startup.waiting_seconds < LONG_SECONDS else LATE_POLL_SECONDS


def retry_refused_pods(
    child: ChildJob, pods: Sequence[ChildPod], desired: int, seen: Observed
) -> tuple[RetryPodCreation, ...]:
    """Force retries of refused pods; no event announces that the cause is gone."""
    missing = len({pod.index for pod in pods}) < desired
    refused = missing and refusals.job_notice(child, seen.startup.notices) is not None
    return (RetryPodCreation(child.name, child.uid),) if refused and seen.startup.may_try_again else ()


def pods_obstacle(job: DPOJob, child: ChildJob, pods: Sequence[ChildPod], desired: int, seen: Observed) -> Reason:
    """What keeps the pods from running; most specific first. child: their batch/v1 Job."""
    claim = seen.claim
    for pod in pods:
        if pod.waiting and pod.waiting[0] in IMAGE_REASONS:
            return (
                c.IMAGE_PULL_FAILED,
                f"Pod {pod.name} can't get its image: {pod.waiting[0]}: {quoted(pod.waiting[1])}",
            )
    for pod in pods:
        if pod.waiting and pod.waiting[0] in CONFIG_REASONS:
            secret = refusals.is_missing_secret(pod.waiting[1])
            return c.SECRET_NOT_FOUND if secret else c.CONTAINER_CONFIG_ERROR, (
                f"Pod {pod.name} can't start its container: {pod.waiting[0]}: {quoted(pod.waiting[1])}"
            )
    if len({pod.index for pod in pods}) < desired and (refused := refusals.job_notice(child, seen.startup.notices)):
        return refused
    for pod in pods:
        if not (pod.running or pod.ended) and (notice := refusals.pod_notice(pod, seen.startup.notices)):
            return notice
    for pod in pods:
        if pod.unscheduled:
            if refusals.is_missing_claim(pod.unscheduled):
                reason = c.VOLUME_NOT_FOUND
            elif claim and not claim.bound and "volume" in pod.unscheduled.lower():
                reason = c.VOLUME_PENDING
            else:
                reason = c.UNSCHEDULABLE
            return reason, f"Pod {pod.name} has no node yet: {quoted(pod.unscheduled)}"
    if claim is not None and not claim.bound:
        # With volumeBindingMode WaitForFirstConsumer this is normal until the first pod has a node.
        return c.VOLUME_PENDING, f"PersistentVolumeClaim {claim.name} is not bound to a volume yet."
    return c.PODS_PENDING, _starting(job, child.name, pods, desired)


def _starting(job: DPOJob, child: str, pods: Sequence[ChildPod], desired: int) -> str:
    """Message for pods that do not exist or are starting, without an event that says why."""
    namespace = job.metadata.namespace
    started = sum(1 for pod in pods if pod.running or pod.ended)
    message = f"{started} of {desired} pods run; {len(pods)} exist."
    if len(pods) < desired:
        why = "a quota or an admission policy can be in the way"
        return f"{message} If this persists, {why}: kubectl -n {namespace} describe job {child}"
    for pod in pods:
        if pod.running or pod.ended:
            continue
        token = job.spec.model.token_secret_ref if pod.phase == "prepare" else None
        why = "its image is being pulled or its volumes mounted"
        needs = f"; Secret {token.name} must exist and have the key {token.key}" if token else ""
        if reaches_sources(job, pod.phase) and (keys := credentials_of(job, pod.phase)):
            needs += f"; Secret {keys} must exist"
        if keys := registry_secret(job, pod.phase):
            needs += f"; Secret {keys} must exist and have the key {DOCKER_CONFIG}"
        if pod.phase == "judge" and (key := judge_key(job, "judge")):
            needs += f"; Secret {key.name} must exist and have the key {key.key}"
        return f"{message} If this persists ({why}{needs}): kubectl -n {namespace} describe pod {pod.name}"
    return message
