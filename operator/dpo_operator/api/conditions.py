"""Conditions of a DPOJob: metav1.Condition, their types and every reason that the operator gives."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel

from dpo_operator.api.text import shown

# Types.
SUSPENDED = "Suspended"
PREPARED = "Prepared"
RUNNING = "Running"
RESTARTING = "Restarting"
COMPLETE = "Complete"
FAILED = "Failed"
# Present only when relevant.
RESIZED = "Resized"
VOLUME_TOO_SMALL = "VolumeTooSmall"
VOLUME_NEARLY_FULL = "VolumeNearlyFull"
# Whether the export is in the store that export.push names.
PUSHED = "Pushed"
# Whether the newest checkpoint that was copied is in the store that checkpoint.mirror names, and no newer copy failed.
MIRRORED = "Mirrored"
# Whether the figures show a run that learns; absent before they were first looked at, and without spec.diagnosis.enabled.
HEALTHY = "Healthy"
TYPES = (
    SUSPENDED,
    PREPARED,
    RUNNING,
    RESTARTING,
    COMPLETE,
    FAILED,
    RESIZED,
    VOLUME_TOO_SMALL,
    VOLUME_NEARLY_FULL,
    PUSHED,
    MIRRORED,
    HEALTHY,
)

# Reasons of the operator's own decisions. A failed trainer's reasons come from the exit-code table.
INVALID_SPEC = "InvalidSpec"
UNSUPPORTED = "Unsupported"
# By the administrator, whose chart values decide. As a reason of Running it heals when they change.
NOT_ALLOWED = "NotAllowed"
DEADLINE_EXCEEDED = "DeadlineExceeded"
MAX_RESTARTS_EXCEEDED = "MaxRestartsExceeded"
NO_PROGRESS = "NoProgress"
VOLUME_LOST = "VolumeLost"

# Reasons of Running=False while a job waits; all of them heal without a restart.
PENDING = "Pending"
PODS_PENDING = "PodsPending"
UNSCHEDULABLE = "Unschedulable"
QUOTA_EXCEEDED = "QuotaExceeded"
ADMISSION_DENIED = "AdmissionDenied"
PRIORITY_CLASS_NOT_FOUND = "PriorityClassNotFound"
PODS_REFUSED = "PodsRefused"
SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason
MOUNT_FAILED = "MountFailed"
IMAGE_PULL_FAILED = "ImagePullFailed"
CONTAINER_CONFIG_ERROR = "ContainerConfigError"
VOLUME_NOT_FOUND = "VolumeNotFound"
VOLUME_PENDING = "VolumePending"
VOLUME_TERMINATING = "VolumeTerminating"
VOLUME_UNSUITABLE = "VolumeUnsuitable"
NAME_CONFLICT = "NameConflict"
REQUEST_REFUSED = "RequestRefused"
STOPPING_OLD_PODS = "StoppingOldPods"
BACKING_OFF = "BackingOff"
QUEUED = "Queued"
GANG_TIMED_OUT = "GangTimedOut"

# Reasons of events that only warn.
PREDICTED_NOT_TO_FIT = "PredictedNotToFit"
HEARTBEAT_SILENT = "HeartbeatSilent"
STRAGGLER = "Straggler"
OPERATOR_ERROR = "OperatorError"
ROUNDS_ENDED = "RoundsEnded"
LEG_UNHEALTHY = "LegUnhealthy"

# Reasons of normal operation.
PREPARING = "Preparing"
PREPARE_SUCCEEDED = "PrepareSucceeded"
PODS_RUNNING = "PodsRunning"
FINISHED = "Finished"
EXPORTED = "Exported"
PUSH_PENDING = "PushPending"
COPIED = "Copied"
MIRROR_PENDING = "MirrorPending"
MIRROR_FAILED = "MirrorFailed"
MIRROR_BEHIND = "MirrorBehind"
SUSPENDED_BY_SPEC = "SuspendedBySpec"
RESUMED = "Resumed"
RESTARTED = "Restarted"
NOT_SUSPENDED = "NotSuspended"
RETRIED = "Retried"
RETRY_IGNORED = "RetryIgnored"
RESIZE_REFUSED = "ResizeRefused"

# Reason of Healthy=True without a finding; with one, the reason is its code.
NO_FINDINGS = "NoFindings"

# Reasons about the volume, of conditions and events.
CLAIM_SMALLER = "ClaimSmaller"
CLAIM_REUSED = "ClaimReused"
EXPANSION_REQUESTED = "ExpansionRequested"
EXPANSION_REFUSED = "ExpansionRefused"
LARGE_ENOUGH = "LargeEnough"
LOW_SPACE = "LowSpace"
ENOUGH_SPACE = "EnoughSpace"


def _to_utc(value: object) -> object:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


# A metav1.Time: RFC 3339 in UTC with whole seconds.
Time = Annotated[
    datetime,
    BeforeValidator(_to_utc),
    PlainSerializer(lambda t: t.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class StatusModel(BaseModel):
    """Base of every part of the status: camelCase in YAML, unknown fields of other versions are dropped."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True, alias_generator=to_camel)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, which takes any name: one that is no field would be lost at the next write. Raises TypeError for it."""
        if unknown := set(update or ()) - type(self).model_fields.keys():
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        return super().model_copy(update=update, deep=deep)


class Condition(StatusModel):
    """One aspect of the job's state, as in metav1.Condition."""

    type: str = Field(max_length=316, description=f"Aspect: {', '.join(TYPES)}.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: int | None = Field(
        default=None, ge=0, description="metadata.generation that this was decided for."
    )
    last_transition_time: Time = Field(description="When status last changed.")
    reason: str = Field(min_length=1, max_length=1024, description="CamelCase word for programs.")
    message: str = Field(default="", max_length=32768, description="Sentence for people.")


def find(conditions: Sequence[Condition], type_: str) -> Condition | None:
    """Condition of a type, or None."""
    return next((c for c in conditions if c.type == type_), None)


def is_true(conditions: Sequence[Condition], type_: str) -> bool:
    """Whether a condition is there and True."""
    found = find(conditions, type_)
    return found is not None and found.status == "True"


def with_condition(
    conditions: Sequence[Condition],
    type_: str,
    holds: bool,
    reason: str,
    message: str,
    *,
    now: datetime,
    generation: int,
) -> tuple[Condition, ...]:
    """The conditions with one set, in a fixed order. The transition time moves only when the status changes."""
    old = find(conditions, type_)
    status: Literal["True", "False"] = "True" if holds else "False"
    new = Condition(
        type=type_,
        status=status,
        observed_generation=generation,
        last_transition_time=old.last_transition_time if old and old.status == status else now,
        reason=reason,
        message=shown(message),
    )
    merged = {c.type: c for c in conditions} | {type_: new}
    order = {t: i for i, t in enumerate(TYPES)}
    return tuple(sorted(merged.values(), key=lambda c: (order.get(c.type, len(order)), c.type)))
