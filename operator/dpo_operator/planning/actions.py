"""Types of a plan: the actions, events and status that planning returns."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.text import shown

MAX_EVENT_MESSAGE = 1000
Kind = Literal["DPOJob", "Job", "Pod"]


@dataclass(frozen=True)
class Create:
    """Create an object. If the name is taken: by this job's own object, success; by any other, an error."""

    manifest: dict[str, Any]
    verb: ClassVar[str] = "create"

    @property
    def kind(self) -> str:
        """Kind of the object."""
        return str(self.manifest["kind"])

    @property
    def name(self) -> str:
        """Name of the object."""
        return str(self.manifest["metadata"]["name"])


@dataclass(frozen=True)
class Delete:
    """Delete exactly the object with this UID. grace_seconds: overrides a pod's terminationGracePeriodSeconds; None does not."""

    kind: Kind
    name: str
    uid: str
    grace_seconds: int | None = None
    verb: ClassVar[str] = "delete"


@dataclass(frozen=True)
class SuspendJob:
    """Set spec.suspend of the batch/v1 Job with this UID and resourceVersion; a conflict causes a new pass."""

    name: str
    uid: str
    resource_version: str
    value: bool
    kind: ClassVar[Kind] = "Job"

    @property
    def verb(self) -> str:
        """Verb for log lines."""
        return "suspend" if self.value else "resume"


@dataclass(frozen=True)
class RetryPodCreation:
    """Touch the Job so that the Job controller retries refused pods now, not after its back-off of up to a minute."""

    name: str
    uid: str
    kind: ClassVar[Kind] = "Job"
    verb: ClassVar[str] = "try again"


@dataclass(frozen=True)
class Patch:
    """Patch annotations and spec of our own object with this UID."""

    manifest: dict[str, Any]
    uid: str
    verb: ClassVar[str] = "patch"

    @property
    def kind(self) -> str:
        """Kind of the object."""
        return str(self.manifest["kind"])

    @property
    def name(self) -> str:
        """Name of the object."""
        return str(self.manifest["metadata"]["name"])


@dataclass(frozen=True)
class ExpandClaim:
    """Request a larger size for the claim with this UID. A refusal becomes a condition and an event, not an error. size: as in the spec."""

    name: str
    uid: str
    size: str
    kind: ClassVar[str] = "PersistentVolumeClaim"
    verb: ClassVar[str] = "expand"


Action = Create | Delete | SuspendJob | RetryPodCreation | Patch | ExpandClaim


@dataclass(frozen=True)
class Event:
    """An event that `kubectl describe` shows."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str

    def __post_init__(self) -> None:
        """The message as people may read it; Kubernetes takes 1,024 characters."""
        object.__setattr__(self, "message", shown(self.message, MAX_EVENT_MESSAGE))


@dataclass(frozen=True)
class Plan:
    """What to do next.

    The status is written first, when it changed; events and actions follow only when that succeeded.
    requeue_after: seconds until the next pass if no event comes first; None: wait for an event.
    """

    status: DPOJobStatus
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None

    def within(self, seconds: float | None) -> "Plan":
        """The plan with the next pass after so many seconds at most; None is no limit."""
        due = [each for each in (self.requeue_after, seconds) if each is not None]
        return replace(self, requeue_after=min(due, default=None))
