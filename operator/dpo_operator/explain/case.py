"""What is known of a job when it is explained: the object, its pods, their events, and where commands act."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from pydantic import ValidationError

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.quantity import duration
from dpo_operator.api.reports import Termination
from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.api.text import shown
from dpo_operator.api.types import DPOJobSpec

Raw = Mapping[str, Any]
# Longest word that Kubernetes uses as a reason, characters.
MAX_REASON = 128


def time_of(text: object) -> datetime | None:
    """A metav1.Time or MicroTime; None for anything else."""
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found


@dataclass(frozen=True)
class Pod:
    """A trainer pod. exit_code, said: of its container that ended, and the trainer's termination message."""

    name: str
    uid: str = ""
    phase: str = ""
    attempt: int = 0
    index: int = 0
    node: str = ""
    pod_phase: str = "Pending"
    unscheduled: str = ""
    waiting: tuple[str, str] | None = None
    exit_code: int | None = None
    exit_reason: str = ""
    said: Termination | None = None

    @classmethod
    def from_raw(cls, raw: Raw) -> "Pod":
        """From the API server's answer."""
        metadata, status = raw["metadata"], raw.get("status") or {}
        labels = metadata.get("labels") or {}
        containers = status.get("containerStatuses") or ()
        own: Raw = next((each for each in containers if each.get("name") == names.CONTAINER), {})
        state = own.get("state") or {}
        waiting, ended = state.get("waiting"), state.get("terminated") or {}
        scheduled: Raw = next(
            (each for each in status.get("conditions") or () if each.get("type") == "PodScheduled"), {}
        )
        return cls(
            name=shown(str(metadata.get("name", "")), 253),
            uid=str(metadata.get("uid", "")),
            phase=str(labels.get(names.LABEL_PHASE, "")),
            attempt=_number(labels.get(names.LABEL_ATTEMPT)),
            index=_number(labels.get(names.COMPLETION_INDEX)),
            node=shown(str((raw.get("spec") or {}).get("nodeName") or ""), 253),
            pod_phase=str(status.get("phase") or "Pending"),
            unscheduled=shown(str(scheduled.get("message") or "")) if scheduled.get("status") == "False" else "",
            waiting=(shown(str(waiting.get("reason") or ""), MAX_REASON), shown(str(waiting.get("message") or "")))
            if waiting
            else None,
            exit_code=int(ended["exitCode"]) if isinstance(ended.get("exitCode"), int) else None,
            exit_reason=shown(str(ended.get("reason") or ""), MAX_REASON),
            said=Termination.from_text(ended.get("message")),
        )


@dataclass(frozen=True)
class Event:
    """A core/v1 Event. about: kind and name of its object. last: when it was last seen."""

    about: str
    type: str
    reason: str
    message: str
    last: datetime | None = None
    count: int = 1

    @classmethod
    def from_raw(cls, raw: Raw) -> "Event":
        """From the API server's answer."""
        about, series = raw.get("involvedObject") or {}, raw.get("series") or {}
        times = (series.get("lastObservedTime"), raw.get("lastTimestamp"), raw.get("eventTime"))
        metadata = raw.get("metadata") or {}
        return cls(
            about=shown(f"{about.get('kind', '')} {about.get('name', '')}", 300),
            type=shown(str(raw.get("type") or ""), MAX_REASON),
            reason=shown(str(raw.get("reason") or ""), MAX_REASON),
            message=shown(str(raw.get("message") or "")),
            last=next((t for t in map(time_of, times) if t), time_of(metadata.get("creationTimestamp"))),
            count=max(_number(series.get("count")), _number(raw.get("count")), 1),
        )


@dataclass(frozen=True)
class Place:
    """Where the job is, as commands name it. cluster: kubectl with its options; empty for a run on this machine.

    options: of `kubectl dpo`. folder: the work folder of a run on this machine.
    """

    cluster: str = "kubectl"
    options: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Case:
    """A job. spec: None when this version can't read it. waiting: when each other job that waits for a turn began to.

    others_known: whether all namespaces could be read for that. unread: what could not be read, a sentence each. busy: whether a run on this machine is at work now.
    """

    name: str
    namespace: str
    spec: DPOJobSpec | None
    status: DPOJobStatus
    now: datetime
    place: Place = Place()
    generation: int = 1
    created: datetime | None = None
    deleting: bool = False
    managed_by: str = names.MANAGER
    pods: tuple[Pod, ...] = ()
    events: tuple[Event, ...] = ()
    unread: tuple[str, ...] = ()
    waiting: tuple[datetime, ...] = ()
    others_known: bool = False
    busy: bool = False

    @classmethod
    def from_raw(
        cls,
        raw: Raw,
        *,
        now: datetime,
        place: Place,
        pods: Iterable[Raw] = (),
        events: Iterable[Raw] = (),
        others: Iterable[Raw] = (),
        others_known: bool = False,
        unread: Iterable[str] = (),
    ) -> Self:
        """From the API server's answers: the DPOJob, its pods, events about both, and other DPOJobs."""
        metadata, spec = raw["metadata"], raw.get("spec") or {}
        return cls(
            name=shown(str(metadata.get("name", "")), 253),
            namespace=shown(str(metadata.get("namespace", "default")), 253),
            spec=_spec(spec),
            status=status_of(raw),
            now=now,
            place=place,
            generation=_number(metadata.get("generation")),
            created=time_of(metadata.get("creationTimestamp")),
            deleting="deletionTimestamp" in metadata,
            managed_by=shown(str(spec.get("managedBy") or names.MANAGER), 253),
            pods=tuple(sorted((Pod.from_raw(each) for each in pods), key=lambda p: (p.phase, p.attempt, p.index))),
            events=tuple(sorted((Event.from_raw(each) for each in events), key=lambda e: e.last or now)),
            waiting=tuple(
                since
                for each in others
                if each["metadata"].get("uid") != metadata.get("uid")
                and (since := time_of(((each.get("status") or {}).get("placementWait") or {}).get("waitingSince")))
            ),
            others_known=others_known,
            unread=tuple(unread),
        )

    @property
    def local(self) -> bool:
        """Whether it is a run on this machine."""
        return bool(self.place.folder)

    @property
    def running(self) -> c.Condition | None:
        """The condition Running."""
        return c.find(self.status.conditions, c.RUNNING)

    @property
    def failed(self) -> c.Condition | None:
        """The condition Failed, while the job has failed."""
        found = c.find(self.status.conditions, c.FAILED)
        return found if found is not None and self.status.state == State.FAILED else None

    @property
    def current_pods(self) -> tuple[Pod, ...]:
        """Pods of the current attempt."""
        status = self.status
        return tuple(p for p in self.pods if (p.phase, p.attempt) == (status.phase, status.attempt))

    def seconds_since(self, time: datetime | None) -> float:
        """Seconds from a time until now; 0 for none."""
        return max(0.0, (self.now - time).total_seconds()) if time is not None else 0.0

    def until(self, time: datetime) -> str:
        """A time to come, for people: when it is, and in how long."""
        return f"at {time:%H:%M:%S} UTC, in {duration((time - self.now).total_seconds())}"

    def kubectl(self, words: str) -> str:
        """A command for the cluster, in the job's namespace."""
        return f"{self.place.cluster} -n {self.namespace} {words}"

    def dpo(self, verb: str) -> str:
        """A command of the plugin on this job."""
        return f"kubectl dpo {verb} {self.name} -n {self.namespace}{self.place.options}"

    def patch(self, **spec: Any) -> str:
        """The command that changes fields of the spec, named as in YAML."""
        change = json.dumps({"spec": spec}, separators=(",", ":"))
        return self.kubectl(f"patch dpojob {self.name} --type=merge -p '{change}'")


def status_of(raw: Raw) -> DPOJobStatus:
    """The status of a DPOJob; empty when there is none, or none that this version can read."""
    try:
        return DPOJobStatus.model_validate(raw.get("status") or {})
    except ValidationError:
        return DPOJobStatus()


def _spec(raw: Raw) -> DPOJobSpec | None:
    try:
        return DPOJobSpec.model_validate(raw)
    except ValidationError:
        return None


def _number(value: object) -> int:
    text = str(value)
    return int(text) if text.isdecimal() and len(text) < 16 else 0
