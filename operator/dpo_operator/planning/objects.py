"""API objects of a job, reduced to what planning needs.

Durations such as `failed_seconds` are measured by the operator's monotonic clock from first observation, so clock skew
between machines can't cause time-outs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.reports import Termination

Raw = Mapping[str, Any]

# Kubernetes notices the end of a pod's last container within seconds.
LINGER_SECONDS = 30.0


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
    """Identity of a Job or pod of ours."""

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
    """How large an attempt at training is: pods, and GPUs of each; None where that can't be told."""

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
    """A batch/v1 Job of ours. size: None where it can't be told."""

    complete: bool = False
    failed: bool = False
    failure_message: str = ""
    failed_seconds: float = 0.0
    suspended: bool = False
    resource_version: str = ""
    size: Size | None = None

    @property
    def finished(self) -> bool:
        """Whether Kubernetes runs nothing of it any more."""
        return self.complete or self.failed

    @classmethod
    def from_raw(cls, raw: Raw, *, failed_seconds: float = 0.0) -> "ChildJob":
        """From the API server's answer."""
        failure = _true_condition(raw, "Failed", "FailureTarget")
        return cls(
            **_identity(raw),
            complete=_true_condition(raw, "Complete", "SuccessCriteriaMet") is not None,
            failed=failure is not None,
            failure_message=str(failure.get("message", "")) if failure else "",
            failed_seconds=failed_seconds,
            suspended=bool(raw.get("spec", {}).get("suspend")),
            resource_version=raw["metadata"].get("resourceVersion") or "",
            size=_size(raw),
        )


def _size(raw: Raw) -> Size | None:
    """What the Job was made for. An earlier version did not write it down: then it's what the Job asks for, if that can be told."""
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
    """The trainer's entry among those of a pod's containers: admission webhooks add others, in any place."""
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
        """The trainer's own report, when it left one."""
        return Termination.from_text(self.text)


@dataclass(frozen=True)
class ChildPod(Labelled):
    """A trainer pod.

    disruption: reason of the DisruptionTarget condition (eviction, preemption, lost node). waiting: reason and message
    of a container that can't start. unscheduled: the scheduler's message. orphan: without a Job, as after a deletion of its
    Job alone.
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
        """Whether the trainer ended with exit code 0, whatever became of other containers of its pod."""
        return self.pod_phase == "Succeeded" if self.exit is None else self.exit.code == 0

    @property
    def ended(self) -> bool:
        """Whether no process of it runs any more."""
        return self.exit is not None or self.pod_phase in ("Succeeded", "Failed")

    @property
    def failed(self) -> bool:
        """Whether it ended, and is not known to have succeeded."""
        return self.ended and not self.succeeded

    @property
    def running(self) -> bool:
        """Whether the trainer's process runs."""
        return self.pod_phase == "Running" and self.exit is None

    @property
    def lingers(self) -> bool:
        """Whether another container, which a webhook added, holds the node's GPUs long after the trainer's end."""
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
            node=raw.get("spec", {}).get("nodeName") or "",
            ip=status.get("podIP") or "",
            pod_phase=status.get("phase") or "Pending",
            reason=status.get("reason") or "",
            message=status.get("message") or "",
            ready=_true_condition(raw, "Ready") is not None,
            exit=_exit(state.get("terminated")),
            waiting=(waiting.get("reason") or "", waiting.get("message") or "") if waiting else None,
            unscheduled=(scheduled.get("message") or "") if scheduled and scheduled["status"] == "False" else "",
            disruption=(disruption.get("reason") or "Disrupted") if disruption else "",
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
        reason=terminated.get("reason") or "",
        finished_at=terminated.get("finishedAt") or "",
        text=terminated.get("message") or "",
    )


@dataclass(frozen=True)
class Claim:
    """A PersistentVolumeClaim. made_for, made_for_uid: job that the operator made it for, from its labels.

    requested, capacity: what is asked for and what there is, quantities; empty where that is not known.
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
        )


@dataclass(frozen=True)
class Support:
    """The job's Service, or the ConfigMap for its spec as it is now, by kind and owner."""

    kind: str
    owner_uid: str | None


@dataclass(frozen=True)
class Guard:
    """A guard of the job's name (see builders/guards.py). digest: of the settings that it was made from."""

    kind: str
    name: str
    uid: str
    owner_uid: str | None
    digest: str

    @classmethod
    def from_raw(cls, raw: Raw) -> "Guard":
        """From the API server's answer."""
        metadata = raw["metadata"]
        digest = (metadata.get("annotations") or {}).get(names.ANNOTATION_DIGEST, "")
        return cls(raw["kind"], metadata["name"], metadata["uid"], owner_uid(raw), digest)


@dataclass(frozen=True)
class Notice:
    """An event of Kubernetes about one of our objects. uid: of that object."""

    uid: str
    reason: str
    message: str

    @classmethod
    def from_raw(cls, raw: Raw) -> "Notice":
        """From the API server's answer."""
        return cls(
            uid=str(raw["involvedObject"].get("uid") or ""),
            reason=raw.get("reason") or "",
            message=raw.get("message") or "",
        )
