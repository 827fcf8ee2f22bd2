"""API objects of a job, reduced to what planning needs.

Durations such as `failed_seconds` are measured by the operator's monotonic clock from first observation, so clock skew
between machines can't cause time-outs.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.reports import Termination
from dpo_operator.api.text import shown

Raw = Mapping[str, Any]

# A pod that is still Running this long after its trainer ended has a sidecar that keeps it alive.
LINGER_SECONDS = 30.0
# Longest CamelCase reason that is kept, characters.
MAX_REASON = 128


def owner_uid(raw: Raw) -> str | None:
    """UID of the controlling owner, or None."""
    references = raw["metadata"].get("ownerReferences") or ()
    return next((str(r["uid"]) for r in references if r.get("controller")), None)


def _int(text: object) -> int | None:
    try:
        return int(str(text))
    except ValueError:
        return None


def _true_condition(raw: Raw, *types: str) -> Raw | None:
    conditions = raw.get("status", {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] in types and c["status"] == "True"), None)


@dataclass(frozen=True)
class Labelled:
    """Identity of our Job or pod, from its labels."""

    name: str
    uid: str
    phase: str
    attempt: int
    deleting: bool

    def belongs_to(self, phase: str | None, attempt: int) -> bool:
        """Whether it is part of this attempt."""
        return (self.phase, self.attempt) == (phase, attempt)


def _identity(raw: Raw) -> dict[str, Any]:
    metadata = raw["metadata"]
    labels = metadata.get("labels") or {}
    attempt = _int(labels.get(names.LABEL_ATTEMPT))
    return {
        "name": metadata["name"],
        "uid": metadata["uid"],
        "phase": labels.get(names.LABEL_PHASE, ""),
        "attempt": -1 if attempt is None else attempt,
        "deleting": "deletionTimestamp" in metadata,
    }


@dataclass(frozen=True)
class Size:
    """Size of a training attempt: pods, and GPUs per pod (None if unknown)."""

    nodes: int
    gpus: int | None

    @classmethod
    def parse(cls, text: str) -> "Size | None":
        """From its text form, such as 2x8; None for any other text."""
        nodes, _, gpus = text.partition("x")
        return cls(int(nodes), int(gpus)) if nodes.isdecimal() and gpus.isdecimal() else None

    def __str__(self) -> str:
        return f"{self.nodes}x{self.gpus}"

    def differs(self, other: "Size") -> bool:
        """Whether they are known to differ."""
        gpus_differ = self.gpus is not None and other.gpus is not None and self.gpus != other.gpus
        return self.nodes != other.nodes or gpus_differ


@dataclass(frozen=True)
class ChildJob(Labelled):
    """A batch/v1 Job of ours. size: None if unknown."""

    complete: bool = False
    failed: bool = False
    failure_message: str = ""
    failed_seconds: float = 0.0
    suspended: bool = False
    resource_version: str = ""
    size: Size | None = None

    @property
    def finished(self) -> bool:
        """Whether the Job has completed or failed."""
        return self.complete or self.failed

    @classmethod
    def from_raw(cls, raw: Raw, *, failed_seconds: float = 0.0) -> "ChildJob":
        """From the API server's answer."""
        failure = _true_condition(raw, "Failed", "FailureTarget")
        return cls(
            **_identity(raw),
            complete=_true_condition(raw, "Complete", "SuccessCriteriaMet") is not None,
            failed=failure is not None,
            failure_message=shown(str(failure.get("message", ""))) if failure else "",
            failed_seconds=failed_seconds,
            suspended=bool(raw.get("spec", {}).get("suspend")),
            resource_version=raw["metadata"].get("resourceVersion") or "",
            size=_size(raw),
        )


def _size(raw: Raw) -> Size | None:
    """Size from the annotation; for Jobs of earlier versions, from completions and the GPU limit."""
    recorded = (raw["metadata"].get("annotations") or {}).get(names.ANNOTATION_SIZE)
    if recorded is not None:
        return Size.parse(recorded)
    spec = raw.get("spec", {})
    nodes = _int(spec.get("completions"))
    trainer = _of_trainer(spec.get("template", {}).get("spec", {}).get("containers") or ())
    if nodes is None or not trainer:
        return None
    return Size(nodes, _int(((trainer.get("resources") or {}).get("limits") or {}).get(names.GPU)))


def _of_trainer(containers: Sequence[Raw]) -> Raw:
    """The trainer's entry in a list of containers or their statuses; webhooks may add others at any index."""
    return next((each for each in containers if len(containers) == 1 or each.get("name") == names.CONTAINER), {})


@dataclass(frozen=True)
class Exit:
    """How the trainer's container ended. finished_at: RFC 3339 by the node's clock."""

    code: int
    reason: str
    finished_at: str
    text: str

    @property
    def termination(self) -> Termination | None:
        """The trainer's termination message, when it wrote one."""
        return Termination.from_text(self.text)


@dataclass(frozen=True)
class ChildPod(Labelled):
    """A trainer pod.

    disruption: reason of the DisruptionTarget condition (eviction, preemption, lost node). waiting: reason and message
    of a container that can't start. unscheduled: the scheduler's message. orphan: its Job was deleted with --cascade=orphan.
    """

    index: int = 0
    node: str = ""
    ip: str = ""
    pod_phase: str = "Pending"
    reason: str = ""
    message: str = ""
    ready: bool = False
    exit: Exit | None = None
    waiting: tuple[str, str] | None = None
    unscheduled: str = ""
    disruption: str = ""
    grace_seconds: int = 30
    deleting_seconds: float = 0.0
    failed_seconds: float = 0.0
    orphan: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether the trainer ended with exit code 0. Other containers of the pod don't matter."""
        return self.pod_phase == "Succeeded" if self.exit is None else self.exit.code == 0

    @property
    def ended(self) -> bool:
        """Whether the trainer's container terminated."""
        return self.exit is not None or self.pod_phase in ("Succeeded", "Failed")

    @property
    def failed(self) -> bool:
        """Whether it ended without a known exit code 0."""
        return self.ended and not self.succeeded

    @property
    def running(self) -> bool:
        """Whether the trainer's process runs."""
        return self.pod_phase == "Running" and self.exit is None

    @property
    def lingers(self) -> bool:
        """Whether a sidecar keeps the pod, and so its GPUs, long after the trainer ended."""
        return self.exit is not None and self.pod_phase == "Running" and self.failed_seconds > LINGER_SECONDS

    @property
    def placed(self) -> bool:
        """Whether it has, or had, a node."""
        return bool(self.node) or self.running or self.ended

    @classmethod
    def from_raw(cls, raw: Raw, *, deleting_seconds: float = 0.0, failed_seconds: float = 0.0) -> "ChildPod":
        """From the API server's answer."""
        metadata, status = raw["metadata"], raw.get("status", {})
        state: Raw = _of_trainer(status.get("containerStatuses") or ()).get("state") or {}
        disruption = _true_condition(raw, "DisruptionTarget")
        scheduled = next((c for c in status.get("conditions") or () if c["type"] == "PodScheduled"), None)
        waiting = state.get("waiting")
        return cls(
            **_identity(raw),
            index=_int((metadata.get("labels") or {}).get(names.COMPLETION_INDEX)) or 0,
            node=shown(raw.get("spec", {}).get("nodeName") or "", 253),
            ip=status.get("podIP") or "",
            pod_phase=status.get("phase") or "Pending",
            reason=shown(status.get("reason") or "", MAX_REASON),
            message=shown(status.get("message") or ""),
            ready=_true_condition(raw, "Ready") is not None,
            exit=_exit(state.get("terminated")),
            waiting=(shown(waiting.get("reason") or "", MAX_REASON), shown(waiting.get("message") or ""))
            if waiting
            else None,
            unscheduled=shown(scheduled.get("message") or "") if scheduled and scheduled["status"] == "False" else "",
            disruption=shown(disruption.get("reason") or "Disrupted", MAX_REASON) if disruption else "",
            grace_seconds=metadata.get("deletionGracePeriodSeconds") or 0,
            deleting_seconds=deleting_seconds,
            failed_seconds=failed_seconds,
            orphan=owner_uid(raw) is None,
        )


def _exit(terminated: Raw | None) -> Exit | None:
    if not terminated:
        return None
    return Exit(
        code=int(terminated.get("exitCode") or 0),
        reason=shown(terminated.get("reason") or "", MAX_REASON),
        finished_at=shown(terminated.get("finishedAt") or "", MAX_REASON),
        text=terminated.get("message") or "",
    )


def token_digest(token: str) -> str:
    """SHA-256 of a claim's token, hex; empty without one."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest() if token else ""


@dataclass(frozen=True)
class Claim:
    """A PersistentVolumeClaim. made_for, made_for_uid: job that the operator made it for, from its labels.

    requested, capacity: size in spec and in status as quantities; empty if unknown. open: whether DPOJobs may name it.
    token_digest: SHA-256 of the token that it carries, hex; empty without one.
    """

    name: str
    uid: str
    bound: bool
    deleting: bool
    access_modes: tuple[str, ...] = ()
    owner_uid: str | None = None
    made_for: str | None = None
    made_for_uid: str | None = None
    requested: str = ""
    capacity: str = ""
    storage_class: str = ""
    open: bool = False
    token_digest: str = ""

    @classmethod
    def from_raw(cls, raw: Raw) -> "Claim":
        """From the API server's answer."""
        metadata = raw["metadata"]
        labels = metadata.get("labels") or {}
        ours = labels.get(names.LABEL_MANAGED_BY) == names.PART_OF
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            bound=raw.get("status", {}).get("phase") == "Bound",
            deleting="deletionTimestamp" in metadata,
            access_modes=tuple(raw.get("spec", {}).get("accessModes") or ()),
            owner_uid=owner_uid(raw),
            made_for=labels.get(names.LABEL_JOB) if ours else None,
            made_for_uid=labels.get(names.LABEL_UID) if ours else None,
            requested=str(((raw.get("spec", {}).get("resources") or {}).get("requests") or {}).get("storage", "")),
            capacity=str((raw.get("status", {}).get("capacity") or {}).get("storage", "")),
            storage_class=raw.get("spec", {}).get("storageClassName") or "",
            # Who can make a claim look like the operator's can set the label too.
            token_digest=token_digest((metadata.get("annotations") or {}).get(names.ANNOTATION_CLAIM_TOKEN, "")),
            open=ours or labels.get(names.LABEL_ALLOW_USE) == "true",
        )


@dataclass(frozen=True)
class Support:
    """The job's Service, or the ConfigMap for its current spec, by kind and owner. as_made: whether it has what the operator
    would write, or leads where the operator's would."""

    kind: str
    owner_uid: str | None
    as_made: bool = True


@dataclass(frozen=True)
class Guard:
    """An existing guard object (see builders/guards.py)."""

    kind: str
    name: str
    uid: str
    owner_uid: str | None
    spec: Raw

    @classmethod
    def from_raw(cls, raw: Raw) -> "Guard":
        """From the API server's answer."""
        metadata = raw["metadata"]
        return cls(raw["kind"], metadata["name"], metadata["uid"], owner_uid(raw), raw.get("spec") or {})


@dataclass(frozen=True)
class Notice:
    """A core/v1 Event about one of our objects. uid: the object's."""

    uid: str
    reason: str
    message: str

    @classmethod
    def from_raw(cls, raw: Raw) -> "Notice":
        """From the API server's answer."""
        return cls(
            uid=str(raw["involvedObject"].get("uid") or ""),
            reason=shown(raw.get("reason") or "", MAX_REASON),
            message=shown(raw.get("message") or ""),
        )
