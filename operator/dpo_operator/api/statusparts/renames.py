"""Fields of a DPOJob's status that had other names: a stored status is read with today's."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rename:
    """A field of the status that had another name.

    part: path of the object that has the field; the status itself without one, [] for each item of a list. values: earlier
    values that have another name now, too.
    """

    earlier: str
    now: str
    part: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


# The API server drops fields that its schema does not have, so the CRD keeps the earlier names. A status has them until it is
# next written, and always when the job has finished.
RENAMED = (
    Rename("restartsCountTowardsMax", "countedRestarts"),
    Rename("bestStep", "furthestStep"),
    Rename("placement", "placementWait"),
    Rename("activeSeconds", "activeSecondsBefore"),
    Rename("retried", "lastHandledRetry"),
    Rename("ready", "started", part="workers"),
    Rename(
        "failureClass",
        "counting",
        part="restartHistory[]",
        values={"counted": "Counted", "infrastructure": "Uncounted", "planned": "Planned"},
    ),
)


def with_current_names(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored status with today's names. An earlier name counts only where today's is absent."""
    for rename in RENAMED:
        status = _renamed(status, rename, rename.part)
    return status


def _renamed(node: Mapping[str, Any], rename: Rename, part: str) -> Mapping[str, Any]:
    if not part:
        if rename.earlier not in node or rename.now in node:
            return node
        value = node[rename.earlier]
        return {**node, rename.now: rename.values.get(value, value) if rename.values else value}
    inner = node.get(part.removesuffix("[]"))
    if part.endswith("[]") and isinstance(inner, list):
        items = [_renamed(item, rename, "") if isinstance(item, Mapping) else item for item in inner]
        return {**node, part.removesuffix("[]"): items}
    return {**node, part: _renamed(inner, rename, "")} if isinstance(inner, Mapping) else node
