"""One pass over one job: observe, plan, write the status, apply the actions."""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from dpo_operator.api import conditions, names
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.text import quoted
from dpo_operator.api.types import DPOJob
from dpo_operator.kube.client import ApiError, Client, FencedError
from dpo_operator.metrics.jobs import JobMetrics
from dpo_operator.metrics.timings import Timings
from dpo_operator.planning import certainty, ending, gangs, resizing, retrying
from dpo_operator.planning.actions import Create, ExpandClaim, Plan, SuspendJob
from dpo_operator.planning.observed import Observed, Turn
from dpo_operator.planning.plan import Settings, plan
from dpo_operator.planning.rejecting import reject_unreadable
from dpo_operator.planning.validate import Problems
from dpo_operator.queueing.key import Key
from dpo_operator.queueing.stopwatch import Stopwatch
from dpo_operator.queueing.turns import Turns
from dpo_operator.reconcile import write
from dpo_operator.reconcile.memory import ChildObjects, JobMemory, RefusedExpansion, slim
from dpo_operator.reconcile.observe import (
    OnList,
    observe,
    observe_guards,
    observe_inputs,
    observe_just_accepted,
    observe_leftovers,
    with_created,
)
from dpo_operator.reconcile.progress_reader import ProgressReader

logger = logging.getLogger(__name__)

Json = dict[str, Any]
GUARD_SECONDS = 300.0
# Plans in one pass without another read: accept, create what pods mount, create the Job, record it.
MAX_ROUNDS = 5
# Expected errors, after which the pass is retried.
RETRYABLE = (ApiError, FencedError, OSError)


def _ignore_list(kind: str, namespace: str | None, items: Sequence[Json]) -> None:
    """Without watches nothing is compared."""


class Reconciler:
    """Reconciles jobs by key. Cached state only saves reads; every plan with actions is based on fresh reads."""

    def __init__(
        self,
        client: Client,
        reader: ProgressReader,
        settings: Settings,
        metrics: JobMetrics,
        *,
        full_pass_seconds: float = 30.0,
        on_list: OnList = _ignore_list,
    ) -> None:
        self._client = client
        self._reader = reader
        self._settings = settings
        self._metrics = metrics
        self._timings = Timings(metrics.registry)
        self._full_pass_seconds = full_pass_seconds
        self._on_list = on_list
        self._memory: dict[Key, JobMemory] = {}
        # Time since terminating pods of deleted jobs were first observed.
        self._gone: dict[Key, Stopwatch] = {}
        self.turns = Turns()

    def changed(self, key: Key, resource_version: str | None = None, event_object: Json | None = None) -> bool:
        """Note that a job changed; False when it was only our own status write.

        event_object: the job as a watch delivered it.
        """
        memory = self._memory.setdefault(key, JobMemory())
        memory.saw(resource_version or "")
        if resource_version is not None and resource_version in memory.written:
            return False
        # A new job without a status can be accepted from the event itself, because the write fails if the version is
        # stale. Anything else is re-read: watch events may be stale.
        is_new = event_object is not None and not event_object.get("status") and not memory.uid
        memory.event_object = slim(event_object) if event_object is not None and is_new else None
        memory.dirty = True
        return True

    def child_changed(self, key: Key, resource_version: str) -> bool:
        """Note that a Job or pod of a job changed; False if the last pass saw this resourceVersion."""
        memory = self._memory.setdefault(key, JobMemory())
        if resource_version in memory.versions:
            return False
        memory.dirty = True
        return True

    async def reconcile(self, key: Key) -> float | None:
        """Do what the job needs now. Returns the seconds until the next pass; None: wait for an event."""
        memory = self._memory.setdefault(key, JobMemory())
        try:
            with self._metrics.timed("reconcile"):
                if not memory.dirty and time.monotonic() - memory.looked_at < self._full_pass_seconds:
                    handled, delay = await self._poll_progress(key, memory)
                    if handled:
                        return delay
                return await self._pass(key, memory)
        except Exception as error:
            if key in self._memory:
                # Force a full pass next time, not only a progress poll.
                self._memory[key].dirty = True
            if not isinstance(error, RETRYABLE):
                # Return the turn that this failed pass may have taken.
                self.turns.release_unless(key, resumes=False)
                logger.exception("%s", key)
                with suppress(*RETRYABLE):
                    await write.report_internal_error(self._client, key.namespace, key.name, error)
            raise

    async def _pass(self, key: Key, memory: JobMemory) -> float | None:
        # Clear before reading, so that changes during the reads cause another pass.
        memory.dirty = False
        raw, memory.event_object = memory.event_object, None
        if raw is None and (found := await self._client.get(names.KIND, key.namespace, key.name)) is not None:
            raw = slim(found)
        if raw is None:
            if doubt := memory.absent_for():
                return doubt
            self.forget(key)
            return await self._remove_leftovers(key)
        if doubt := memory.outdated_for(raw):
            return doubt
        if raw["metadata"]["uid"] != memory.uid:
            if memory.uid:
                self._gone.setdefault(key, Stopwatch())
            # Another object of the same name: nothing that is cached applies to it.
            memory = self._memory[key] = JobMemory(uid=raw["metadata"]["uid"], newest=memory.newest, dirty=False)
        seen: Observed | None = None
        just_accepted = False
        for _ in range(MAX_ROUNDS):
            before = memory.parsed.status(raw)
            decision, seen = await self._decide(key, raw, seen, memory, just_accepted=just_accepted)
            # Our write accepted the job, so no child objects exist yet.
            just_accepted = before.start_time is None and decision.status.phase is not None
            try:
                raw = await self._write(raw, decision, memory)
            except ApiError as error:
                if not error.is_gone:
                    raise
                # The next read finds out.
                memory.dirty = True
                return certainty.SECOND_LOOK_SECONDS
            self._timings.written(key, before, decision.status, seen, self._client.now())
            self._metrics.update(key, raw, decision.status)
            memory.raw, memory.seen, memory.looked_at = raw, seen, time.monotonic()
            memory.is_due_in(decision.requeue_after)
            startup = memory.startup.announce(before, decision.status, seen)
            events = decision.events + startup + memory.heartbeats.announce()
            await write.record(self._client, raw, events)
            seen = await self._apply(key, raw, decision, seen, memory)
            # Plan again on the same reads only if the plan says so or only mounts were created. After creating a Job, end
            # the pass: its pods appear a moment later.
            plan_again = decision.requeue_after == 0 or any(
                isinstance(a, Create) and a.kind != "Job" for a in decision.actions
            )
            if memory.dirty or not plan_again:
                break
        after = decision.requeue_after
        if key in self._gone:
            left = await self._remove_leftovers(key, memory.uid)
            after = min((each for each in (after, left) if each is not None), default=None)
        # A second look is a full pass.
        memory.dirty |= memory.unsure
        if memory.idle and decision.status.state is not None:
            memory.rest(decision.status.state)
        return after

    async def _remove_leftovers(self, key: Key, except_uid: str = "") -> float | None:
        """Force-delete terminating pods of deleted jobs on lost nodes; otherwise they block claims and namespaces.

        except_uid: of the current job of this name, whose pods are excluded. Returns the seconds until the next check, None
        when no such pod is left.
        """
        pods = await observe_leftovers(self._client, key, self._gone.setdefault(key, Stopwatch()), except_uid)
        for action in ending.last_removals(pods):
            await write.apply(self._client, key.namespace, "", action)
            logger.info("%s: %s %s %s", key, action.verb, action.kind, action.name)
        after = ending.next_check(pods)
        if after is None:
            del self._gone[key]
        return after

    async def _decide(
        self, key: Key, raw: Json, seen: Observed | None, memory: JobMemory, *, just_accepted: bool
    ) -> tuple[Plan, Observed | None]:
        """The next plan. seen: reads of this pass that are still valid; None: read again."""
        status, job = memory.parsed.status(raw), memory.parsed.job(raw)
        if isinstance(job, Problems):
            generation = int(raw["metadata"].get("generation", 1))
            retry = retrying.token_of(raw["metadata"].get("annotations") or {})
            self.turns.forget(key)
            manager = (raw.get("spec") or {}).get("managedBy")
            now = self._client.now()
            return reject_unreadable(status, job, generation=generation, now=now, manager=manager, retry=retry), None
        if status.phase is None and not status.is_final:
            # Acceptance depends on the spec alone. Report the job, so that one that will be rejected does not block turns.
            self.turns.report(key, gangs.TurnState.NONE, gangs.priority(status, self._client.now()))
            return plan(job, status, Observed(claim_token=memory.claim_token), self._client.now(), self._settings), None
        is_fresh = seen is None
        if seen is None and just_accepted:
            seen = await observe_just_accepted(self._client, job, memory)
            memory.guarded, memory.guards_at = status.phase, time.monotonic()
        elif seen is None:
            # While the attempt's Job exists, the claim, Service and ConfigMap are not created, so cached reads suffice.
            has_job = status.active_job is not None or memory.made == (status.phase, status.attempt)
            max_age = self._full_pass_seconds if has_job else 0.0
            seen = await observe(self._client, job, status, memory, max_age=max_age, on_list=self._on_list)
        if is_fresh and status.phase == "prepare" and seen.job_of("prepare", status.attempt) is None:
            seen = replace(seen, inputs=await observe_inputs(self._client, job))
        if (refusal := memory.expansion) is not None and refusal.is_fresh:
            seen = replace(seen, expansion_refused=(refusal.size, refusal.message))
        running = resizing.as_running(job, status, seen)
        if is_fresh:
            seen = memory.with_held(status, seen)
            seen = replace(seen, startup=await memory.startup.observe(self._client, running, status, seen))
        seen = await self._with_guards(running, status, seen, memory)
        seen = replace(seen, heartbeat=await memory.heartbeats.observe(self._reader, running, status, seen))
        now = self._client.now()
        seen = replace(seen, turn=self._turn(key, running, status, seen, memory, now))
        decision = plan(job, status, seen, now, self._settings)
        resumes = any(isinstance(a, SuspendJob) and not a.value for a in decision.actions)
        self.turns.release_unless(key, resumes=resumes)
        return decision, seen

    async def _poll_progress(self, key: Key, memory: JobMemory) -> tuple[bool, float | None]:
        """Poll a running job: one request to its rank 0 and, unless something changed, none to the API server.

        Returns (handled, seconds until the next pass). Not handled: a full pass is needed, because a plan with actions must
        be based on fresh reads.
        """
        if memory.raw is None or memory.seen is None:
            return False, None
        status, job = memory.parsed.status(memory.raw), memory.parsed.job(memory.raw)
        if isinstance(job, Problems) or not conditions.is_true(status.conditions, conditions.RUNNING):
            return False, None
        running = resizing.as_running(job, status, memory.seen)
        heartbeat = await memory.heartbeats.observe(self._reader, running, status, memory.seen)
        seen = replace(memory.seen, heartbeat=heartbeat)
        decision = plan(job, status, seen, self._client.now(), self._settings)
        needs_pass = decision.actions or decision.events or memory.heartbeats.has_events
        if memory.dirty or needs_pass or decision.requeue_after is None:
            return False, None
        if (decision.status.phase, decision.status.attempts) != (status.phase, status.attempts):
            return False, None
        try:
            memory.raw = await self._write(memory.raw, decision, memory)
        except ApiError as error:
            if error.is_conflict:
                return False, None
            raise
        self._metrics.update(key, memory.raw, decision.status)
        memory.is_due_in(decision.requeue_after)
        return True, decision.requeue_after

    async def _with_guards(self, job: DPOJob, status: DPOJobStatus, seen: Observed, memory: JobMemory) -> Observed:
        """Read the guards before each attempt and every GUARD_SECONDS; settings of the operator or the job may change them."""
        if status.phase is None or status.is_final:
            return seen
        known = memory.guarded == status.phase and time.monotonic() - memory.guards_at < GUARD_SECONDS
        # Still valid: read or created in this pass, or the attempt's Job exists.
        if known and (seen.guards is not None or seen.job_of(status.phase, status.attempt) is not None):
            return seen
        memory.guarded, memory.guards_at = status.phase, time.monotonic()
        return replace(seen, guards=await observe_guards(self._client, job, status.phase))

    def _turn(
        self, key: Key, job: DPOJob, status: DPOJobStatus, seen: Observed, memory: JobMemory, now: datetime
    ) -> Turn:
        state = gangs.turn_state(job, status, seen, now)
        turn = self.turns.report(key, state, gangs.priority(status, now))
        # Timer key: a new attempt or another placement time-out restarts the timer.
        fact = (status.attempts.train, status.placement_wait.timeouts if status.placement_wait else 0)
        placing = state is gangs.TurnState.PLACING or gangs.is_partly_placed(job, status, seen)
        memory.placing.keep([fact] if placing else [])
        seconds = memory.placing.seconds(fact) if placing else 0.0
        return replace(turn, placing_seconds=seconds)

    async def _write(self, raw: Json, decision: Plan, memory: JobMemory) -> Json:
        if decision.status == memory.parsed.status(raw):
            return raw
        written = await write.write_status(self._client, raw, decision.status)
        memory.written.append(version := str(written["metadata"]["resourceVersion"]))
        memory.saw(version)
        return slim(written)

    async def _apply(
        self, key: Key, raw: Json, decision: Plan, seen: Observed | None, memory: JobMemory
    ) -> Observed | None:
        """Apply the actions. Returns the updated observation, None if it must be read again."""
        for action in decision.actions:
            try:
                made = await write.apply(self._client, key.namespace, raw["metadata"]["uid"], action)
            except ApiError as error:
                if error.is_terminating:
                    return None
                if isinstance(action, ExpandClaim) and error.is_refusal:
                    memory.expansion = RefusedExpansion(action.size, quoted(error.message))
                    seen, memory.dirty = None, True
                    continue
                if error.is_refusal or error.code == 404:
                    what = f"{action.verb} {action.kind} {action.name}"
                    memory.refused = f"The API server refused to {what}: {quoted(error.message)}"
                memory.dirty, memory.child_objects = True, None
                raise
            logger.info("%s: %s %s %s", key, action.verb, action.kind, action.name)
            if made is None or seen is None:
                # Force a re-read: the effect must be seen even without an event.
                seen, memory.dirty = None, True
                continue
            seen = with_created(seen, made)
            if action.kind == "Job":
                memory.created_job(decision.status, made)
        if decision.actions:
            memory.refused = ""
            now = time.monotonic()
            memory.child_objects = ChildObjects(seen.claim, seen.support, now, now) if seen else None
        return replace(seen, refused=memory.refused) if seen else None

    def forget(self, key: Key) -> None:
        """Drop everything about a job that is gone."""
        self._memory.pop(key, None)
        self._timings.forget(key)
        self.turns.forget(key)
        self._metrics.forget(key)

    def is_settled(self, key: Key, resource_version: str) -> bool:
        """Whether the periodic pass may leave a job alone."""
        memory = self._memory.get(key)
        return memory is not None and memory.is_settled(resource_version, self._full_pass_seconds)

    def known(self) -> frozenset[Key]:
        """Keys of all cached jobs."""
        return frozenset(self._memory)
