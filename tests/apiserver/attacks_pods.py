"""Pods that look like the ranks of somebody else's job, made by one who may make pods in its namespace."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from dpo_operator.api import names
from tests.apiserver.attacks_played import Played, always, owner, victims_labels
from tests.apiserver.hands import last_words
from tests.apiserver.tenants import LAB, SHARED, Arena, Json

VICTIM = "honest"


@dataclass(frozen=True)
class Pod:
    """owners: of its metadata. code: with which its container ends, None while it runs. collected: whether Kubernetes deletes it,
    since an owner is gone."""

    id: str
    owners: Callable[[Arena], list[Json]]
    attempt: str = "1"
    phase: str = "train"
    code: int | None = 78
    collected: bool = False
    namespace: str = SHARED
    index: str = "0"
    victim: str = VICTIM

    @property
    def name(self) -> str:
        return "planted-" + self.id.replace(" ", "-").lower()

    @property
    def digest(self) -> str:
        """Of a checkpoint that it claims to have saved."""
        return self.name.encode().hex()[-64:].rjust(64, "e")

    def plant(self, arena: Arena) -> None:
        hands = arena.hands(SHARED)
        raw = hands.get("dpojobs", self.victim) or {}
        labels = victims_labels(raw) | {names.LABEL_PHASE: self.phase, names.LABEL_ATTEMPT: self.attempt}
        labels |= {names.COMPLETION_INDEX: self.index}
        metadata = {"name": self.name, "labels": labels, "ownerReferences": self.owners(arena)}
        metadata["finalizers"] = ["example.org/stay"]
        container = {"name": names.CONTAINER, "image": "attacker.example/i:1"}
        manifest = {"kind": "Pod", "metadata": metadata, "spec": {"containers": [container], "restartPolicy": "Never"}}
        pod = arena.plant("t3", "pods", manifest, self.namespace)
        there = arena.hands(self.namespace)
        if self.code is None:
            there.start(pod, "192.0.2.66")
        else:
            progress = {"phase": "train", "attempt": 1, "step": 99}
            progress["checkpoint"] = {"step": 99, "path": "c", "digest": self.digest, "attempt": 1, "time": 1.0}
            progress["findings"] = [{"code": "Forged", "severity": "Unhealthy", "cause": self.name}]
            there.end(pod, self.code, last_words(self.code, "train", 1, message=self.name, progress=progress))

    def won(self, arena: Arena) -> str:
        """What it decided; the victim's life is over by now."""
        status = arena.hands(SHARED).status(self.victim)
        words = json.dumps(status)
        if self.digest in words:
            return "its digest is recorded"
        if self.name in words:
            return "its words are the victim's"
        if status.get("state") != "Complete":
            return f"the victim is {status.get('state')}"
        kept = arena.hands(self.namespace).get("pods", self.name) or {"metadata": {"deletionTimestamp": ""}}
        return "" if self.collected or "deletionTimestamp" not in kept["metadata"] else "deleted by the operator"


def _nobody(_: Arena) -> list[Json]:
    return []


def _a_config_map(arena: Arena) -> list[Json]:
    made = arena.hands(SHARED, "t2").get("configmaps", "theirs") or arena.plant(
        "t2", "configmaps", {"kind": "ConfigMap", "metadata": {"name": "theirs"}}
    )
    return owner(made, "ConfigMap", "v1")


def _job_of(name: str) -> Callable[[Arena], list[Json]]:
    def found(arena: Arena) -> list[Json]:
        return owner(arena.hands(SHARED).children("jobs", name)[-1], "Job", "batch/v1")

    return found


def _wrong_uid(arena: Arena) -> list[Json]:
    (reference,) = _job_of(VICTIM)(arena)
    return [reference | {"uid": "00000000-0000-0000-0000-000000000000"}]


def _mere_reference(arena: Arena) -> list[Json]:
    (reference,) = _job_of(VICTIM)(arena)
    return [reference | {"controller": False}]


def _dpojob(arena: Arena) -> list[Json]:
    return owner(arena.hands(SHARED).get("dpojobs", VICTIM) or {})


PODS: tuple[Pod, ...] = (
    Pod("of a ConfigMap", _a_config_map),
    Pod("of nobody", _nobody),
    Pod("of attempt 99", _nobody, attempt="99", code=None),
    Pod("of an attempt to come", _nobody, attempt="2"),
    Pod("of no number", _nobody, attempt="x"),
    Pod("of the attackers own Job", _job_of("adopted")),
    Pod("of a Job with another UID", _wrong_uid, collected=True),
    Pod("of the DPOJob itself", _dpojob),
    Pod("of a mere reference", _mere_reference, collected=True),
    Pod("that is done", _nobody, code=0),
    Pod("that runs in place of rank 0", _nobody, code=None),
    Pod("that exports", _nobody, phase="export", code=0),
    Pod("in another namespace", _nobody, namespace=LAB),
)

# The controller's UID is in the DPOJob's status, for everybody who may read it: only the admission policy keeps these out.
FORGED = Pod("of the victims own Job", _job_of("doubled"), victim="doubled", collected=True)


def forged_won(arena: Arena) -> str:
    """Another life than that of the other pods' victim, which would be over."""
    status = arena.hands(SHARED).status(FORGED.victim)
    return "its words are the victim's" if FORGED.name in json.dumps(status) else ""


PLANTED: tuple[Played, ...] = tuple(Played(f"pod {pod.id}", "t3", pod.plant, always, pod.won) for pod in PODS)
