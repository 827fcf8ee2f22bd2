"""Which reasons of Running=False get a warning event, and after how long."""

from dpo_operator.api import conditions as c
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.planning.actions import Event

# Delays below this are normal for a scheduler.
UNSCHEDULABLE_AFTER_SECONDS = 5.0
# Reasons that every start passes through; reported only when they persist.
EXPECTED_AFTER_SECONDS = 30.0
EXPECTED_AT_START = (c.PODS_PENDING, c.VOLUME_PENDING)
IMMEDIATE = (
    c.IMAGE_PULL_FAILED,
    c.CONTAINER_CONFIG_ERROR,
    c.VOLUME_NOT_FOUND,
    c.VOLUME_UNSUITABLE,
    c.NAME_CONFLICT,
    c.REQUEST_REFUSED,
    c.QUOTA_EXCEEDED,
    c.ADMISSION_DENIED,
    c.PRIORITY_CLASS_NOT_FOUND,
    c.PODS_REFUSED,
    c.SECRET_NOT_FOUND,
    c.MOUNT_FAILED,
)
# Minimum interval between two events with the same reason.
REPEAT_SECONDS = 600.0


def obstacle_event(status: DPOJobStatus, waiting_seconds: float) -> Event | None:
    """Warning for the current reason of Running=False, or None. The caller removes duplicates."""
    running = c.find(status.conditions, c.RUNNING)
    if status.is_final or running is None or running.status == "True":
        return None
    after = dict.fromkeys(IMMEDIATE, 0.0) | dict.fromkeys(EXPECTED_AT_START, EXPECTED_AFTER_SECONDS)
    after[c.UNSCHEDULABLE] = UNSCHEDULABLE_AFTER_SECONDS
    if waiting_seconds < after.get(running.reason, float("inf")):
        return None
    return Event("Warning", running.reason, running.message)
