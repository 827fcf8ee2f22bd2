"""Straggler detection: a rank that is much slower than the others. Reported by event and status only; no action."""

from collections.abc import Sequence

from dpo_operator.api import conditions as c
from dpo_operator.api.reports import Progress
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.gang import StragglerStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.planning.actions import Event
from dpo_operator.planning.objects import ChildPod
from dpo_operator.planning.transitions import Moment, changed

# Time divided by the median of the other ranks: a straggler from the first value on, until below the second.
RATIO, CALM_RATIO = 1.5, 1.25
# A change of the ratio that is worth a write.
RATIO_CHANGE = 1.25


def with_straggler(
    job: DPOJob, status: DPOJobStatus, read: Progress | None, pods: Sequence[ChildPod], at: Moment
) -> tuple[DPOJobStatus, tuple[Event, ...]]:
    """The status with the straggler, if any, and an event when a rank becomes one."""
    known = status.straggler
    if known is not None and known.attempt != status.attempt:
        known, status = None, changed(status, straggler=None)
    if status.phase != "train" or read is None or (read.phase, read.attempt) != ("train", status.attempt):
        return status, ()
    found = read.slowest
    if known is not None and found is not None and found.rank == known.rank and found.ratio >= CALM_RATIO:
        before = float(known.ratio)
        if not before / RATIO_CHANGE <= found.ratio <= before * RATIO_CHANGE:
            status = changed(status, straggler=known.model_copy(update={"ratio": f"{found.ratio:.1f}"}))
        return status, ()
    if found is None or found.ratio < RATIO or found.rank >= job.spec.world_size:
        return (status if known is None else changed(status, straggler=None)), ()
    pod = next((pod for pod in pods if pod.index == found.rank // job.spec.processes_per_node), None)
    straggler = StragglerStatus(
        attempt=status.attempt,
        rank=found.rank,
        ratio=f"{found.ratio:.1f}",
        pod=pod.name if pod else "",
        node=pod.node if pod else "",
        since=at.now,
    )
    message = (
        f"Rank {straggler.rank} (pod {straggler.pod or 'unknown'} on node {straggler.node or 'unknown'}) takes "
        f"{straggler.ratio} times as long as the other ranks for the same work, and they wait for it. Look for a CPU limit, a slow "
        f"GPU or another load there."
    )
    return changed(status, straggler=straggler), (Event("Warning", c.STRAGGLER, message),)
