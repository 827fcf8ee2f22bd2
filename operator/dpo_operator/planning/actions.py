"""The vocabulary of a plan."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dpo_operator.api.status import DPOJobStatus

Kind = Literal["DPOJob", "Job", "Pod"]


@dataclass(frozen=True)
class Create:
    """Create an object; one of the same name that is not ours is an error, one that is ours is fine."""

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
    """Delete exactly the object with this UID. grace_seconds: for pods, None keeps the pod's own."""

    kind: Kind
    name: str
    uid: str
    grace_seconds: int | None = None
    verb: ClassVar[str] = "delete"


@dataclass(frozen=True)
class SuspendJob:
    """Set spec.suspend of exactly the batch/v1 Job with this UID, as it was seen: one that changed since is looked at anew."""

    name: str
    uid: str
    resource_version: str
    value: bool
    kind: ClassVar[Kind] = "Job"

    @property
    def verb(self) -> str:
        """What is done, for people who read the log."""
        return "suspend" if self.value else "resume"


@dataclass(frozen=True)
class RetryPodCreation:
    """Have the Job controller try at once to make the pods of this Job: left alone, it waits up to a minute after refusals."""

    name: str
    uid: str
    kind: ClassVar[Kind] = "Job"
    verb: ClassVar[str] = "try again"


@dataclass(frozen=True)
class Patch:
    """Give an object that is ours the annotations and the spec of this manifest, if it still is the one with this UID."""

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
    """Ask for more room on exactly the claim with this UID. A refusal is told, and is no error. size: as in the spec."""

    name: str
    uid: str
    size: str
    kind: ClassVar[str] = "PersistentVolumeClaim"
    verb: ClassVar[str] = "expand"


Action = Create | Delete | SuspendJob | RetryPodCreation | Patch | ExpandClaim


@dataclass(frozen=True)
class Event:
    """An event for people who run `kubectl describe`."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What to do next.

    The status is written first, when it changed; events and actions follow only when that succeeded.
    requeue_after: seconds until the job has to be looked at again without any event; None: when something happens.
    """

    status: DPOJobStatus
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
