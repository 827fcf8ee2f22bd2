"""Which Jobs and pods are a job's own.

Anyone who may create pods can give them the job's labels. A pod counts when its controller is one of the job's own Jobs, by
UID: of those that exist, that the status names, or that this process has seen. A pod without a controller counts when
this process has seen it with one, before its Job was deleted with --cascade=orphan.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.planning.objects import owner_uid

Json = dict[str, Any]


@dataclass
class Ownership:
    """Memory of one job: UIDs of its Jobs so far, and of its pods in the last list."""

    jobs: set[str] = field(default_factory=set)
    pods: frozenset[str] = frozenset()

    def own_jobs(self, listed: Iterable[Json], uid: str) -> list[Json]:
        """The Jobs that the DPOJob with this UID controls."""
        own = [raw for raw in listed if owner_uid(raw) == uid]
        self.jobs |= {str(raw["metadata"]["uid"]) for raw in own}
        return own

    def own_pods(self, listed: Iterable[Json], status: DPOJobStatus) -> list[Json]:
        """The pods of the Jobs that are known by now."""
        active = [status.active_job] if status.active_job else []
        jobs = self.jobs | {job.uid for job in (*active, *status.earlier_jobs)}
        own = [
            raw
            for raw in listed
            if ((owner := owner_uid(raw)) in jobs) or (owner is None and raw["metadata"]["uid"] in self.pods)
        ]
        self.pods = frozenset(str(raw["metadata"]["uid"]) for raw in own)
        return own


def is_leftover(raw: Json) -> bool:
    """Whether a pod is one of a DPOJob that may be gone: it ends, and its controller is a Job with the name of an attempt."""
    metadata = raw["metadata"]
    labels: dict[str, str] = metadata.get("labels") or {}
    references: Sequence[Json] = metadata.get("ownerReferences") or ()
    controller = next((r for r in references if r.get("controller")), None)
    parts = [labels.get(label) for label in (names.LABEL_JOB, names.LABEL_PHASE, names.LABEL_ATTEMPT)]
    if controller is None or "deletionTimestamp" not in metadata or not all(parts):
        return False
    return (controller.get("kind"), controller.get("name")) == ("Job", "-".join(str(part) for part in parts))
