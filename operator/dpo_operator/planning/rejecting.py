"""Jobs whose spec is not valid, or that this version of the operator can't read."""

from dataclasses import replace
from datetime import datetime

from dpo_operator.api import names
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.text import shown
from dpo_operator.planning import restarts, retrying, transitions
from dpo_operator.planning.actions import Event, Plan
from dpo_operator.planning.transitions import Moment, changed
from dpo_operator.planning.validate import Problems


def reject(status: DPOJobStatus, problems: Problems, at: Moment) -> Plan:
    """Fail a job whose spec is not valid."""
    status = changed(status, start_time=at.now)
    return restarts.give_up(status, problems.reason, problems.describe(), at)


def reject_unreadable(
    status: DPOJobStatus, problems: Problems, *, generation: int, now: datetime, manager: object = None, retry: str = ""
) -> Plan:
    """Plan for a spec that this operator can't read. manager: its spec.managedBy; another controller's jobs are left alone.

    A job that already runs is left alone: an older operator after a roll-back must not stop what a newer one started.
    retry: value of the retry annotation.
    """
    if manager not in (None, names.MANAGER):
        return Plan(status)
    at = Moment(now.replace(microsecond=0), generation)
    if status.is_final:
        if not retrying.is_requested(retry, status):
            return Plan(status)
        event = Event("Warning", problems.reason, problems.describe())
        return Plan(changed(status, last_handled_retry=retry), events=(event,))
    if status.phase is not None:
        message = f"This version of the operator can't read the spec and leaves the job alone. {problems.describe()}"
        if status.message == shown(message):
            return Plan(status)
        return Plan(changed(status, message=message), events=(Event("Warning", problems.reason, message),))
    rejected = reject(status, problems, at)
    return replace(rejected, status=transitions.settled(rejected.status, at))
