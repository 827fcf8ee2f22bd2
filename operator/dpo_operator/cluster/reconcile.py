"""One pass over one job: look, decide, write the decision down, carry it out."""

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from dpo_operator.api import conditions, names
from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.job import pod_count
from dpo_operator.builders.ports import ports_of
from dpo_operator.cluster import write
from dpo_operator.cluster.client import ApiError, Client
from dpo_operator.cluster.keys import Key
from dpo_operator.cluster.memory import JobMemory, RefusedExpansion
from dpo_operator.cluster.observe import observe, observe_guards
from dpo_operator.cluster.progress import ProgressReader
from dpo_operator.cluster.turns import Turns
from dpo_operator.metrics import JobMetrics
from dpo_operator.planning import gangs, resizing, retrying
from dpo_operator.planning.actions import ExpandClaim, Plan, SuspendJob
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.plan import Settings, plan, reject_unreadable
from dpo_operator.planning.validate import Problems, read_job

logger = logging.getLogger(__name__)

Json = dict[str, Any]
GUARD_SECONDS = 300.0


class Reconciler:
    """Reconciles jobs by key. What it remembers only saves reads; every decision that acts is made on fresh ones."""

    def __init__(
        self,
        client: Client,
        reader: ProgressReader,
        settings: Settings,
        metrics: JobMetrics,
        *,
        look_seconds: float = 30.0,
    ) -> None:
        self._client = client
        self._reader = reader
        self._settings = settings
        self._metrics = metrics
        self._look_seconds = look_seconds
        self._memory: dict[Key, JobMemory] = {}
        self.turns = Turns()

    def changed(self, key: Key, resource_version: str | None = None) -> bool:
        """Note that something happened to a job; False when it was only our own status write coming back."""
        memory = self._memory.setdefault(key, JobMemory())
        if resource_version is not None and resource_version == memory.written:
            return False
        memory.dirty = True
        return True

    async def reconcile(self, key: Key) -> float | None:
        """Do what the job needs now. Returns the seconds until it needs another look, None when an event will tell."""
        memory = self._memory.setdefault(key, JobMemory())
        with self._metrics.timed("reconcile"):
            if not memory.dirty and time.monotonic() - memory.looked_at < self._look_seconds:
                done, delay = await self._tick(key, memory)
                if done:
                    return delay
            return await self._pass(key, memory)

    async def _pass(self, key: Key, memory: JobMemory) -> float | None:
        # Cleared before the reads: what happens during them is another reason to look.
        memory.dirty = False
        raw = await self._client.get(names.KIND, key.namespace, key.name)
        if raw is None:
            self.forget(key)
            return None
        if raw["metadata"]["uid"] != memory.uid:
            # Another object of the same name: nothing that was known holds for it.
            memory = self._memory[key] = JobMemory(uid=raw["metadata"]["uid"], dirty=False)
        status = DPOJobStatus.model_validate(raw.get("status") or {})
        job = read_job(raw)
        if isinstance(job, Problems):
            generation = int(raw["metadata"].get("generation", 1))
            retry = retrying.token_of(raw["metadata"].get("annotations") or {})
            decision = reject_unreadable(status, job, generation=generation, now=datetime.now(UTC), retry=retry)
            seen = None
            self.turns.forget(key)
        else:
            seen = await observe(self._client, job, memory.pods, memory.refused)
            if (refusal := memory.expansion) is not None and refusal.is_fresh:
                seen = replace(seen, expansion_refused=(refusal.size, refusal.why))
            seen = await self._with_guards(job, status, seen, memory)
            seen = await self._with_progress(job, status, seen, memory)
            now = datetime.now(UTC)
            seen = self._with_turn(key, job, status, seen, memory, now)
            decision = plan(job, status, seen, now, self._settings)
            self.turns.settle(key, any(isinstance(a, SuspendJob) and not a.value for a in decision.actions))
        try:
            raw = await self._write(raw, decision, memory)
        except ApiError as error:
            if not error.is_gone:
                raise
            self.forget(key)
            return None
        self._metrics.update(key, raw, decision.status)
        memory.raw, memory.seen, memory.looked_at = raw, seen, time.monotonic()
        memory.due = decision.requeue_after is not None
        await write.record(self._client, raw, decision.events)
        await self._apply(key, raw, decision, memory)
        return decision.requeue_after

    async def _tick(self, key: Key, memory: JobMemory) -> tuple[bool, float | None]:
        """Follow a running job with one request to its rank 0 and none to the API server, unless there is news.

        Returns whether that was enough; a decision that acts is made anew on fresh reads.
        """
        if memory.raw is None or memory.seen is None:
            return False, None
        status = DPOJobStatus.model_validate(memory.raw.get("status") or {})
        job = read_job(memory.raw)
        if isinstance(job, Problems) or not conditions.is_true(status.conditions, conditions.RUNNING):
            return False, None
        seen = await self._with_progress(job, status, memory.seen, memory)
        decision = plan(job, status, seen, datetime.now(UTC), self._settings)
        if memory.dirty or decision.actions or decision.events or decision.requeue_after is None:
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
        return True, decision.requeue_after

    async def _with_guards(self, job: DPOJob, status: DPOJobStatus, seen: Observed, memory: JobMemory) -> Observed:
        """Guards change with the operator's settings and with the job's: before each attempt, and now and then."""
        if status.phase is None or status.is_final:
            return seen
        due = not memory.guards_at or time.monotonic() - memory.guards_at >= GUARD_SECONDS
        if not due and seen.job_of(status.phase, status.attempt) is not None:
            return seen
        memory.guards_at = time.monotonic()
        guards = await observe_guards(self._client, resizing.as_running(job, status, seen))
        return replace(seen, guards=guards)

    async def _with_progress(self, job: DPOJob, status: DPOJobStatus, seen: Observed, memory: JobMemory) -> Observed:
        if status.phase is None or status.is_final:
            return seen
        job = resizing.as_running(job, status, seen)
        pods = seen.pods_of(status.phase, status.attempt)
        first = next((p for p in pods if p.index == 0 and p.running and not p.deleting), None)
        port = ports_of(job, status.phase).metrics
        read = await self._reader.read(first.ip, port) if first and first.ip else None
        if sum(1 for p in pods if p.running) < pod_count(job, status.phase):
            memory.stall.reset()
            return replace(seen, progress=read, stalled_seconds=None)
        return replace(seen, progress=read, stalled_seconds=memory.stall.stalled_seconds(status, read))

    def _with_turn(
        self, key: Key, job: DPOJob, status: DPOJobStatus, seen: Observed, memory: JobMemory, now: datetime
    ) -> Observed:
        stand = gangs.stand(resizing.as_running(job, status, seen), status, seen, now)
        turn = self.turns.look(key, stand, gangs.order(status, now))
        # Since the Job was resumed: the next one that is, or the same one later, starts this clock anew.
        fact = (status.attempts.train, status.placement.timeouts if status.placement else 0)
        memory.placing.keep([fact] if stand is gangs.Stand.PLACING else [])
        seconds = memory.placing.seconds(fact) if stand is gangs.Stand.PLACING else 0.0
        return replace(seen, may_place=turn.may_place, others_waiting=turn.others_waiting, placing_seconds=seconds)

    async def _write(self, raw: Json, decision: Plan, memory: JobMemory) -> Json:
        if decision.status == DPOJobStatus.model_validate(raw.get("status") or {}):
            return raw
        written = await write.write_status(self._client, raw, decision.status)
        memory.written = written["metadata"]["resourceVersion"]
        return written

    async def _apply(self, key: Key, raw: Json, decision: Plan, memory: JobMemory) -> None:
        for action in decision.actions:
            try:
                await write.apply(self._client, key.namespace, raw["metadata"]["uid"], action)
            except ApiError as error:
                if error.is_terminating:
                    return
                if isinstance(action, ExpandClaim) and error.is_refusal:
                    memory.expansion = RefusedExpansion(action.size, error.message)
                    continue
                if error.is_refusal or error.is_gone:
                    memory.refused = f"The API server refused to create {action.name}: {error.message}"
                memory.dirty = True
                raise
            logger.info("%s: %s %s %s", key, action.verb, action.kind, action.name)
        if decision.actions:
            memory.refused = ""
            # The next look must see what was just done, whether or not an event tells.
            memory.dirty = True

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._memory.pop(key, None)
        self.turns.forget(key)
        self._metrics.forget(key)

    def is_settled(self, key: Key, resource_version: str) -> bool:
        """Whether a finished job is in the version that was last looked at, and nothing is due any more."""
        memory = self._memory.get(key)
        if memory is None or memory.dirty or memory.raw is None or memory.due:
            return False
        state = (memory.raw.get("status") or {}).get("state")
        finished = state in (State.COMPLETE, State.FAILED)
        return finished and bool(memory.raw["metadata"]["resourceVersion"] == resource_version)

    def known(self) -> frozenset[Key]:
        """Keys of all jobs that are remembered."""
        return frozenset(self._memory)
