"""plan(): the next actions and status of one job."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.allowed.allow import DEFAULT_ALLOW, Allow
from dpo_operator.api.allowed.allow import refusals as not_allowed
from dpo_operator.api.status import ActiveJob, DPOJobStatus, Workers
from dpo_operator.api.statusparts.stored import VolumeStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.config import build_config_map
from dpo_operator.builders.job import build_child_job
from dpo_operator.builders.networks import CLOSED, Networks
from dpo_operator.builders.pod import TrainerImage
from dpo_operator.builders.queue import DEFAULT_SCHEDULERS, Schedulers
from dpo_operator.builders.service import build_service
from dpo_operator.builders.shape import pod_count
from dpo_operator.builders.volume import build_claim
from dpo_operator.planning import (
    certainty,
    ending,
    failures,
    findings,
    gangs,
    guarding,
    hangs,
    legs,
    mirroring,
    progress,
    recorded,
    refusals,
    rejecting,
    resizing,
    restarts,
    retrying,
    stragglers,
    succeeding,
    transitions,
    usage,
    volumes,
    waiting,
)
from dpo_operator.planning.actions import Create, Event, Plan
from dpo_operator.planning.objects import ChildJob, ChildPod
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.stale import find_stale, removals, stray_removals
from dpo_operator.planning.transitions import Moment, changed
from dpo_operator.planning.validate import Problems, validate

# Requeue interval while waiting for something that is not watched, such as a claim.
WAIT_SECONDS = 10.0
SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class Settings:
    """The operator's settings that decisions depend on.

    progress_seconds: between two reads of rank 0's progress. gpu_memory: bytes per GPU, None if not configured.
    networks: what pods may reach, and who may scrape them. allow: what the administrator lets jobs ask for.
    """

    image: TrainerImage
    progress_seconds: float = 3.0
    gpu_memory: float | None = None
    networks: Networks = CLOSED
    schedulers: Schedulers = DEFAULT_SCHEDULERS
    allow: Allow = DEFAULT_ALLOW

    def refused(self, job: DPOJob) -> Problems | None:
        """What the job asks for and the administrator does not allow."""
        found = not_allowed(job.spec, self.allow, self.image.name, job.metadata.namespace, self.image.generate)
        return Problems(c.NOT_ALLOWED, tuple(found)) if found else None


def plan(job: DPOJob, status: DPOJobStatus, seen: Observed, now: datetime, settings: Settings) -> Plan:
    """Next actions and status for one job. No I/O, no clock, no mutation.

    now: UTC. The status is written before the actions run, so the operator can crash at any point and resume from the
    stored status.
    """
    if job.spec.managed_by != names.MANAGER:
        return Plan(status)
    if job.metadata.deletion_timestamp is not None:
        return ending.being_deleted(job, status, seen)
    at = Moment(now.replace(microsecond=0), job.metadata.generation)
    found: tuple[Event, ...] = ()
    if not status.is_final:
        status = recorded.with_reported_checkpoints(status, seen)
        status, found = findings.with_findings(job, status, seen, at)
    decision = volumes.with_volume(_decide(job, status, seen, at, settings), job, status, seen, at)
    decision = mirroring.with_mirror(decision, job, seen, at, settings.image)
    decision = decision.within(_next_deadline(job, decision.status, at))
    settled = transitions.settled(decision.status, at, status)
    pods = seen.pods_of(settled.phase, settled.attempt)
    settled = usage.with_usage(settled, resizing.as_running(job, status, seen), status, at.now, pods)
    return replace(decision, status=settled, events=(*found, *decision.events))


def _decide(job: DPOJob, status: DPOJobStatus, seen: Observed, at: Moment, settings: Settings) -> Plan:
    """Rules are tried in order; the first that applies wins."""
    if status.is_final:
        return ending.after_finish(job, status, seen, at)
    if answer := retrying.ignore_early(job, status):
        return answer
    if status.phase is None:
        return _accept(job, volumes.with_token(job, status, seen), at, settings)
    if job.spec.suspend != transitions.holds(status, c.SUSPENDED):
        return _suspend_or_resume(job, status, at)
    if _deadline_passed(job, status, at):
        message = f"The job ran longer than activeDeadlineSeconds: {job.spec.active_deadline_seconds}."
        return restarts.give_up(status, c.DEADLINE_EXCEEDED, message, at)
    if lost := volumes.lost_message(status, seen):
        if left := certainty.seconds_left(seen, certainty.claim_lost(status)):
            return Plan(status, requeue_after=left)
        return mirroring.after_loss(status, lost, at)
    if stale := find_stale(status, seen):
        status = status if job.spec.suspend else transitions.waiting(status, at, c.STOPPING_OLD_PODS, stale.describe())
        return Plan(status, removals(stale, status, seen), requeue_after=SETTLE_SECONDS)
    if job.spec.suspend:
        return _stay_suspended(status, seen)
    if seen.claim is None and (noted := volumes.with_token(job, status, seen)) != status:
        return Plan(noted, requeue_after=0)
    decision = _advance(job, status, seen, at, settings)
    return replace(decision, actions=(*decision.actions, *stray_removals(status, seen)))


def _advance(requested: DPOJob, status: DPOJobStatus, seen: Observed, at: Moment, settings: Settings) -> Plan:
    """Rules for the current attempt once no older objects remain. requested: the job at the size of its spec."""
    assert status.phase is not None
    # The job at the running attempt's size.
    job = resizing.as_running(requested, status, seen)
    child, pods = seen.job_of(status.phase, status.attempt), seen.pods_of(status.phase, status.attempt)
    desired = pod_count(job, status.phase)
    if (child is not None and child.complete) or _all_succeeded(pods, desired):
        return succeeding.succeed(job, status, pods, at, settings.gpu_memory)
    # Pods that end while their Job is suspended were stopped by the suspension, not by a failure.
    suspended_job = child is not None and child.suspended and not child.failed
    if not suspended_job and (failure := failures.root_cause(child, pods, desired)):
        if not failures.is_settled(failure, child, pods):
            return Plan(status, requeue_after=SETTLE_SECONDS)
        return restarts.after_failure(status, failure, job.spec.failure_policy, at)
    if status.active_job is not None and (child is None or child.uid != status.active_job.uid):
        if left := certainty.seconds_left(seen, certainty.job_lost(status)):
            return Plan(status, requeue_after=left)
        failure = failures.job_deleted(status.active_job.name)
        return restarts.after_failure(status, failure, job.spec.failure_policy, at)
    if child is None:
        return _create(job, status, seen, at, settings)
    refused = ""
    if resizing.is_due(requested, child):
        refused = resizing.refusal(requested, status, seen)
        if not refused:
            return resizing.resize(status, requested, child, at)
    else:
        status = resizing.without_refusal(status, at)
    monitored = changed(status, active_job=ActiveJob(name=child.name, uid=child.uid), not_before=None)
    monitored = transitions.with_active_clock(monitored, at, suspended=suspended_job)
    if status.volume is None and seen.claim is not None and not waiting.claim_obstacle(job, status, seen.claim):
        claim = VolumeStatus(claim_name=seen.claim.name, claim_uid=seen.claim.uid, folder=job.metadata.uid)
        monitored = changed(monitored, volume=claim, claim_tokens=[])
    if suspended_job:
        decision = gangs.wait(job, monitored, seen, child, pods, at)
    else:
        decision = _monitor(job, monitored, seen, child, pods, at, settings)
    if status.active_job is None:
        whose = f" of {status.step.whose}" if status.step.whose else ""
        created = Event("Normal", "Created", f"Job {child.name} runs the {status.phase} phase{whose}.")
        decision = replace(decision, events=(created, *decision.events))
    if refused:
        # The ConfigMap that was observed is for the requested size; the running attempt uses another, so don't create this one.
        actions = tuple(action for action in decision.actions if action.kind != "ConfigMap")
        decision = resizing.refuse(replace(decision, actions=actions), child, refused, at)
    return decision


def _accept(job: DPOJob, status: DPOJobStatus, at: Moment, settings: Settings) -> Plan:
    if problems := validate(job) or settings.refused(job):
        return rejecting.reject(status, problems, at)
    return Plan(transitions.accepted(status, at), requeue_after=0)


def _suspend_or_resume(job: DPOJob, status: DPOJobStatus, at: Moment) -> Plan:
    if job.spec.suspend:
        event = Event("Normal", c.SUSPENDED, "spec.suspend is true; pods are stopped after a save.")
        return Plan(transitions.suspended(status, at), events=(event,), requeue_after=0)
    event = Event("Normal", c.RESUMED, f"spec.suspend is false; {status.phase} resumes as attempt {status.attempt}.")
    return Plan(transitions.resumed(status, at), events=(event,), requeue_after=0)


def _stay_suspended(status: DPOJobStatus, seen: Observed) -> Plan:
    """Raise the attempt number when a Job was created just before the suspension: it becomes stale and is deleted."""
    assert status.phase is not None
    if seen.job_of(status.phase, status.attempt) is None:
        return Plan(status)
    return Plan(changed(status, attempts=status.attempts.next(status.phase)), requeue_after=0)


def _deadline_passed(job: DPOJob, status: DPOJobStatus, at: Moment) -> bool:
    limit = job.spec.active_deadline_seconds
    return limit is not None and transitions.active_seconds(status, at.now) >= limit


def _next_deadline(job: DPOJob, status: DPOJobStatus, at: Moment) -> float | None:
    """Seconds until the TTL or the active deadline; None without one."""
    if status.is_final:
        ttl = job.spec.ttl_seconds_after_finished
        if ttl is None or status.completion_time is None:
            return None
        return max(1.0, ttl - (at.now - status.completion_time).total_seconds())
    limit = job.spec.active_deadline_seconds
    if limit is None or status.active_since is None:
        return None
    return float(max(1, limit - transitions.active_seconds(status, at.now)))


def _all_succeeded(pods: Sequence[ChildPod], desired: int) -> bool:
    return len({pod.index for pod in pods if pod.succeeded}) >= desired


def _create(job: DPOJob, status: DPOJobStatus, seen: Observed, at: Moment, settings: Settings) -> Plan:
    """Create what the current attempt lacks: first the objects that its pods mount, then the Job."""
    phase = status.phase
    assert phase is not None
    if refused := settings.refused(job):
        # Accepted by an older operator, or before the administrator changed the rules. Running pods are left alone.
        return Plan(transitions.waiting(status, at, refused.reason, refused.describe()), requeue_after=WAIT_SECONDS)
    if obstacle := (
        waiting.claim_obstacle(job, status, seen.claim)
        or waiting.use_obstacle(job, phase, seen, settings.allow)
        or waiting.support_obstacle(job, seen)
        or guarding.obstacle(job, seen)
    ):
        return Plan(transitions.waiting(status, at, *obstacle), requeue_after=WAIT_SECONDS)
    if seen.refused:
        # Report the refusal and retry: a quota or a webhook may accept it later.
        status = transitions.waiting(status, at, *refusals.refusal(seen.refused, c.REQUEST_REFUSED))
    if status.not_before is not None and restarts.is_backing_off(job.spec.failure_policy, status, at.now):
        left = status.not_before - at.now
        message = f"Attempt {status.attempt} starts at {status.not_before:%H:%M:%S} UTC."
        return Plan(transitions.waiting(status, at, c.BACKING_OFF, message), requeue_after=left / timedelta(seconds=1))
    missing = (*_missing_support(job, phase, seen), *guarding.repairs(job, phase, seen, settings.networks))
    if missing:
        return Plan(status, missing, requeue_after=0)
    if status.attempt > 1 and (doubt := certainty.seconds_left(seen, certainty.nothing_left(status))):
        # Two attempts at once would write to the same volume.
        return Plan(status, requeue_after=doubt)
    recorded_now = recorded.for_current_attempt(status)
    number = status.round or legs.number(status)
    child = build_child_job(job, phase, status.attempt, settings.image, recorded_now, settings.schedulers, number)
    return Plan(status, (Create(child),), requeue_after=WAIT_SECONDS)


def _missing_support(job: DPOJob, phase: names.Phase, seen: Observed) -> tuple[Create, ...]:
    """Missing claim, ConfigMap and, for train, headless Service."""
    present = {support.kind for support in seen.support}
    missing = []
    if seen.claim is None:
        missing.append(build_claim(job, seen.claim_token))
    if "ConfigMap" not in present:
        missing.append(build_config_map(job))
    if phase == "train" and "Service" not in present:
        missing.append(build_service(job))
    return tuple(Create(manifest) for manifest in missing)


def _monitor(
    job: DPOJob,
    status: DPOJobStatus,
    seen: Observed,
    child: ChildJob,
    pods: Sequence[ChildPod],
    at: Moment,
    settings: Settings,
) -> Plan:
    """The attempt's Job exists: monitor its pods."""
    phase = status.phase
    assert phase is not None
    desired = pod_count(job, phase)
    # Ended pods count as started: failures were handled above, and a success shows in the Job later.
    started = len({pod.index for pod in pods if pod.running or pod.ended})
    status = changed(gangs.placed(status, pods, desired), workers=Workers(desired=desired, started=started))
    if started < desired:
        # Pods that know nothing of one another work before all of them are there.
        if failure := hangs.hang(status, seen.heartbeat, pods, hangs.timeout_seconds(job, status, seen.heartbeat)):
            return restarts.after_failure(status, failure, job.spec.failure_policy, at)
        if given_back := gangs.end_turn(job, status, seen, child, pods, at):
            return given_back
        obstacle = waiting.claim_obstacle(job, status, seen.claim)
        obstacle = obstacle or waiting.pods_obstacle(job, child, pods, desired, seen)
        again = waiting.retry_refused_pods(child, pods, desired, seen)
        decision = Plan(
            transitions.waiting(status, at, *obstacle), again, requeue_after=waiting.poll_seconds(seen.startup)
        )
        return gangs.with_time_left(decision, gangs.time_left(job, status, seen, pods))
    was_running = transitions.holds(status, c.RUNNING)
    status = progress.with_reading(transitions.running(status, at), seen.heartbeat.progress, at.now)
    timeout = hangs.timeout_seconds(job, status, seen.heartbeat)
    if failure := hangs.hang(status, seen.heartbeat, pods, timeout):
        return restarts.after_failure(status, failure, job.spec.failure_policy, at)
    status, slow = stragglers.with_straggler(job, status, seen.heartbeat.progress, pods, at)
    events = slow if was_running else (Event("Normal", c.RUNNING, status.message), *slow)
    missing = (*_missing_support(job, phase, seen), *guarding.repairs(job, phase, seen, settings.networks))
    return Plan(
        status,
        missing,
        events,
        requeue_after=min(settings.progress_seconds, hangs.seconds_left(seen.heartbeat, timeout)),
    )
