"""Which of the reasons why a job does not run deserve an event, and when."""

from dpo_operator.api import conditions as c
from dpo_operator.api.conditions import shorten
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.planning.actions import Event

# A scheduler or a volume that is slow for so long is no news.
UNSCHEDULABLE_AFTER_SECONDS = 5.0
# These are part of every start; said when they last.
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
# A reason that comes and goes is said again after this long at the earliest.
REPEAT_SECONDS = 600.0


def obstacle_event(status: DPOJobStatus, waiting_seconds: float) -> Event | None:
    """The warning that the job's state deserves, whether or not it was given before."""
    running = c.find(status.conditions, c.RUNNING)
    if status.is_final or running is None or running.status == "True":
        return None
    after = dict.fromkeys(IMMEDIATE, 0.0) | dict.fromkeys(EXPECTED_AT_START, EXPECTED_AFTER_SECONDS)
    after[c.UNSCHEDULABLE] = UNSCHEDULABLE_AFTER_SECONDS
    if waiting_seconds < after.get(running.reason, float("inf")):
        return None
    return Event("Warning", running.reason, shorten(running.message, 1000))
