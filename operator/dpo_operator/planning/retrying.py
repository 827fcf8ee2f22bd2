"""Retry of a failed job by annotation. Each new value of the annotation is one retry."""

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.text import shown
from dpo_operator.api.types import DPOJob
from dpo_operator.planning import findings, transitions
from dpo_operator.planning.actions import Event, Plan
from dpo_operator.planning.transitions import Moment, changed

# Tokens are compared by their first MAX_TOKEN characters, which the status stores.
MAX_TOKEN = 256


def token_of(annotations: dict[str, str]) -> str:
    """Value of the annotation, empty without one."""
    return shown(annotations.get(names.ANNOTATION_RETRY, "")[:MAX_TOKEN], MAX_TOKEN)


def is_requested(token: str, status: DPOJobStatus) -> bool:
    """Whether there is a value that was not handled yet."""
    return token not in ("", status.last_handled_retry)


def retry_finished(job: DPOJob, status: DPOJobStatus, at: Moment) -> Plan:
    """Handle a new token on a finished job."""
    token = token_of(job.metadata.annotations)
    if transitions.holds(status, c.COMPLETE):
        return _ignored(status, token, "The job is complete: there is nothing to retry.")
    status = changed(status, last_handled_retry=token)
    if status.phase is None:
        # The spec was rejected: validate it again, perhaps by a newer version of the operator.
        status = _cleared(status, "The spec is validated again.", at)
        return Plan(status, events=(Event("Normal", c.RETRIED, status.message),), requeue_after=0)
    status = changed(status, attempts=status.attempts.next(status.phase))
    message = f"Retry of the failed job: {status.phase} resumes as attempt {status.attempt}."
    status = transitions.mark(_cleared(status, message, at), at, c.RUNNING, False, c.PENDING, message)
    return Plan(status, events=(Event("Normal", c.RETRIED, message),), requeue_after=0)


def ignore_early(job: DPOJob, status: DPOJobStatus) -> Plan | None:
    """Consume a new token on a job that has not failed, so that it has no effect at a later failure. None without one."""
    token = token_of(job.metadata.annotations)
    if not is_requested(token, status):
        return None
    if status.phase is None:
        # The annotation was in the first manifest, perhaps copied from another job: ignore it silently.
        return Plan(changed(status, last_handled_retry=token), requeue_after=0)
    return _ignored(status, token, "The job has not failed: there is nothing to retry.")


def _ignored(status: DPOJobStatus, token: str, why: str) -> Plan:
    return Plan(
        changed(status, last_handled_retry=token), events=(Event("Warning", c.RETRY_IGNORED, why),), requeue_after=0
    )


def _cleared(status: DPOJobStatus, message: str, at: Moment) -> DPOJobStatus:
    """Clear the failure, and reset restart counters and the active deadline."""
    suspended = transitions.holds(status, c.SUSPENDED)
    status = changed(
        findings.cleared(status),
        active_job=None,
        not_before=None,
        placement_wait=None,
        completion_time=None,
        counted_restart_times=[],
        restarts_without_progress=0,
        active_seconds_before=0,
        active_since=None if suspended else at.now,
        message=message,
    )
    return transitions.mark(status, at, c.FAILED, False, c.RETRIED, message)
