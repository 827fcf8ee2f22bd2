"""The one module that writes to the cluster: status, child objects and events."""

import hashlib
import logging
from typing import Any

from dpo_operator.api import conditions, names
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.text import quoted
from dpo_operator.builders.service import leads_alike
from dpo_operator.kube.client import RESOURCES, ApiError, Client, resource_of
from dpo_operator.planning.actions import (
    Action,
    Create,
    Delete,
    Event,
    ExpandClaim,
    Patch,
    RetryPodCreation,
    SuspendJob,
)
from dpo_operator.planning.objects import owner_uid

logger = logging.getLogger(__name__)

Json = dict[str, Any]
COMPONENT = "dpo-operator"


async def write_status(client: Client, raw: Json, status: DPOJobStatus) -> Json:
    """Write the status and return the object as it then is.

    The resourceVersion that was read is the precondition: a plan based on stale data fails with a conflict (ApiError). The
    spec is not sent, because a write of the status changes nothing else.
    """
    metadata = raw["metadata"]
    path = RESOURCES[names.KIND].path(metadata["namespace"], metadata["name"], "status")
    body = {key: value for key, value in raw.items() if key != "spec"} | {"status": status.to_dict()}
    return await client.request("PUT", path, body=body)


async def apply(client: Client, namespace: str, uid: str, action: Action) -> Json | None:
    """Apply one action of the plan for the job with this UID. Idempotent.

    Returns the created object, or None if nothing was created.
    """
    match action:
        case Create():
            return await _create(client, namespace, uid, action)
        case Delete():
            await _delete(client, namespace, action)
        case SuspendJob():
            seen = {"uid": action.uid, "resourceVersion": action.resource_version}
            await _patch(client, namespace, action, {"metadata": seen, "spec": {"suspend": action.value}})
        case RetryPodCreation():
            now = client.now().strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata = {"uid": action.uid, "annotations": {names.ANNOTATION_TRIED: now}}
            await _patch(client, namespace, action, {"metadata": metadata})
        case Patch():
            metadata = {"uid": action.uid, "annotations": action.manifest["metadata"].get("annotations") or {}}
            await _patch(client, namespace, action, {"metadata": metadata, "spec": action.manifest["spec"]})
        case ExpandClaim():
            spec = {"resources": {"requests": {"storage": action.size}}}
            await _patch(client, namespace, action, {"metadata": {"uid": action.uid}, "spec": spec})
    return None


async def _create(client: Client, namespace: str, uid: str, action: Create) -> Json | None:
    resource = resource_of(action.manifest)
    try:
        created = await client.request("POST", resource.path(namespace), body=action.manifest)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
        # The response to an earlier request may have been lost. Never adopt another owner's object. Our claim may have no
        # owner (retention Retain); the next pass checks its labels.
        existing = await client.get(resource, namespace, action.name)
        if existing is not None and (
            owner_uid(existing) not in (uid, owner_uid(action.manifest))
            or (action.kind == "Service" and not leads_alike(existing, action.manifest))
        ):
            message = f"{action.kind} {action.name} exists and does not belong to this job; delete it or rename the job"
            raise ApiError(403, "NameConflict", message) from error
        return None
    return {"kind": action.kind, **created}


async def _delete(client: Client, namespace: str, action: Delete) -> None:
    path = RESOURCES[action.kind].path(namespace, action.name)
    body: Json = {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": action.uid},
        "propagationPolicy": "Background",
    }
    if action.grace_seconds is not None:
        body["gracePeriodSeconds"] = action.grace_seconds
    try:
        await client.request("DELETE", path, body=body)
    except ApiError as error:
        # Not found, or another UID: the object is gone.
        if not (error.is_gone or error.is_conflict):
            raise


async def _patch(
    client: Client, namespace: str, action: SuspendJob | RetryPodCreation | Patch | ExpandClaim, body: Json
) -> None:
    resource = resource_of(action.manifest) if isinstance(action, Patch) else RESOURCES[action.kind]
    path = resource.path(namespace, action.name)
    try:
        await client.request("PATCH", path, body=body)
    except ApiError as error:
        # Gone or changed: the next pass plans again.
        if not (error.is_gone or error.is_conflict):
            raise


async def record(client: Client, raw: Json, events: tuple[Event, ...]) -> None:
    """Emit events about a job. A failure is logged and never raised."""
    metadata = raw["metadata"]
    now = client.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    for event in events:
        # Name = hash(uid, resourceVersion, reason, message), so that a retried POST is idempotent.
        identity = f"{metadata['uid']}/{metadata['resourceVersion']}/{event.reason}/{event.message}"
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{digest}", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "source": {"component": COMPONENT},
            "reportingComponent": names.MANAGER,
            "reportingInstance": COMPONENT,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await client.request("POST", RESOURCES["Event"].path(metadata["namespace"]), body=body)
        except ApiError as error:
            if error.reason != "AlreadyExists" and not error.is_terminating:
                logger.warning(
                    "%s/%s: event %s was not written: %s", metadata["namespace"], metadata["name"], event.reason, error
                )


async def report_internal_error(client: Client, namespace: str, name: str, error: Exception) -> None:
    """Report an error of the operator itself as an event on the job."""
    if raw := await client.get(names.KIND, namespace, name):
        message = f"Internal error of the operator; retrying: {type(error).__name__}: {quoted(str(error))}"
        event = Event("Warning", conditions.OPERATOR_ERROR, message)
        await record(client, raw, (event,))
