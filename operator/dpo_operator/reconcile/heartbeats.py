"""Progress of a running attempt: polls its pods' /status and measures how long nothing changed."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dpo_operator.api.names import Phase
from dpo_operator.api.reports import Progress
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.ports import ports_of
from dpo_operator.builders.shape import pod_count
from dpo_operator.planning.actions import Event
from dpo_operator.planning.hangs import SILENT_SECONDS, silent_event
from dpo_operator.planning.objects import ChildPod
from dpo_operator.planning.observed import Heartbeat, Observed
from dpo_operator.reconcile.progress_reader import ProgressReader, Silence

# Other pods polled when rank 0 is silent. Ranks step together, so one answer is enough.
OTHERS = 3
# Exponential back-off for unreachable pods, seconds: each poll costs a connection time-out.
FIRST_WAIT, LONGEST_WAIT = 3.0, 30.0

Answer = Progress | Silence


@dataclass
class Heartbeats:
    """Memory of one job, by this machine's monotonic clock.

    Training is a gang: rank 0's pod is read; when it is silent, others are, and any step that any of them reports is a sign of life. The time
    without one only counts while there is evidence: a pod that answers, one whose process does not take a connection that its
    kernel took, or one that answered before and no longer listens. Pods that can't be reached at all tell nothing, since a
    NetworkPolicy may be in the way.

    Pods of other phases know nothing of one another, so each is watched by itself, for as long as it runs.
    """

    clock: Callable[[], float] = time.monotonic
    _attempt: tuple[Phase | None, int] = (None, 0)
    _marks: dict[int, object] = field(default_factory=dict)
    _hung: set[int] = field(default_factory=set)
    _waits: dict[int, tuple[float, float]] = field(default_factory=dict)
    _answered_at: dict[int, float] = field(default_factory=dict)
    _silent_since: dict[int, float] = field(default_factory=dict)
    _furthest: int = 0
    _moved_at: float | None = None
    _rank0_silent_since: float | None = None
    _warned: bool = False
    _next: int = 0
    _pending_events: tuple[Event, ...] = ()

    async def observe(self, reader: ProgressReader, job: DPOJob, status: DPOJobStatus, seen: Observed) -> Heartbeat:
        """The newest progress of the current attempt, and the time without any."""
        if status.phase is None or status.is_final:
            return seen.heartbeat
        pods = seen.pods_of(status.phase, status.attempt)
        if (status.phase, status.attempt) != self._attempt:
            self._forget(status)
            self._waits = {}
        # A failed pod ends the attempt. Polling the others would only delay the decision.
        failed = any(pod.failed for pod in pods)
        asked = [] if failed else [pod for pod in pods if pod.running and not pod.deleting and pod.ip]
        port = ports_of(job, status.phase).metrics
        if status.phase != "train":
            return self._each(await self._read(reader, status, self._next_of_each(asked), port))
        answers = await self._ask(reader, status, asked, port)
        told = {index: answer for index, answer in answers.items() if isinstance(answer, Progress)}
        read = told.get(0) or max(told.values(), key=lambda progress: progress.step, default=None)
        if sum(1 for pod in pods if pod.running) < pod_count(job, status.phase):
            self._forget(status)
            return Heartbeat(progress=read)
        stalled = self._stalled(status, answers)
        self._warn_about_rank0(asked, answers, stalled, read)
        hung = tuple(sorted(self._hung & answers.keys()))
        return Heartbeat(read, stalled, hung)

    @property
    def has_events(self) -> bool:
        """Whether events are pending."""
        return bool(self._pending_events)

    def announce(self) -> tuple[Event, ...]:
        """Return and clear pending events."""
        events, self._pending_events = self._pending_events, ()
        return events

    async def _read(
        self, reader: ProgressReader, status: DPOJobStatus, pods: Sequence[ChildPod], port: int
    ) -> dict[int, Answer]:
        """Answers of pods, by node rank; a pod that is not due yet stays unreachable."""
        due = [pod for pod in pods if self._waits.get(pod.index, (0.0, 0.0))[0] <= self.clock()]
        answers = await asyncio.gather(*(reader.read(pod.ip, port) for pod in due))
        current = {pod.index: _current(answer, status) for pod, answer in zip(due, answers, strict=True)}
        self._put_off(current)
        return {pod.index: Silence.UNREACHABLE for pod in pods} | current

    def _rotated(self, pods: Sequence[ChildPod], count: int) -> Sequence[ChildPod]:
        """So many pods, others at each call."""
        if len(pods) <= count:
            return pods
        self._next = (self._next + count) % len(pods)
        return [*pods[self._next :], *pods[: self._next]][:count]

    async def _ask(
        self, reader: ProgressReader, status: DPOJobStatus, pods: Sequence[ChildPod], port: int
    ) -> dict[int, Answer]:
        """Answers of rank 0, or of some others when it is silent, by node rank; empty without rank 0's pod."""
        if not pods or pods[0].index != 0:
            return {}
        first, others = pods[:1], pods[1 : 1 + OTHERS]
        if self._rank0_silent_since is not None:
            return await self._read(reader, status, [*first, *others], port)
        answers = await self._read(reader, status, first, port)
        if not isinstance(answers[0], Progress):
            return answers | await self._read(reader, status, others, port)
        if self._moved_at is None or self.clock() - self._moved_at < SILENT_SECONDS:
            return answers
        # Rank 0 may be waiting for a slower rank that still makes progress, so poll the others in rotation.
        return answers | await self._read(reader, status, self._rotated(pods[1:], OTHERS), port)

    def _next_of_each(self, pods: Sequence[ChildPod]) -> Sequence[ChildPod]:
        """Whom to ask of pods that know nothing of one another: the first, those that hang, and others in turn."""
        hung = [pod for pod in pods[1:] if pod.index in self._hung][:OTHERS]
        rest = [pod for pod in pods[1:] if pod.index not in self._hung]
        return [*pods[:1], *hung, *self._rotated(rest, OTHERS - len(hung))]

    def _each(self, answers: dict[int, Answer]) -> Heartbeat:
        """Signs of life of pods that know nothing of one another: that it answers at all is each one's. The longest silence of one counts."""
        now = self.clock()
        for index, answer in answers.items():
            self._note_hung(index, answer)
            if answer is Silence.HUNG:
                # One that was not asked the last time could have answered then.
                self._silent_since.setdefault(index, self._answered_at.get(index, now))
        self._answered_at = {index: now for index, answer in answers.items() if isinstance(answer, Progress)}
        self._silent_since = {index: since for index, since in self._silent_since.items() if index in self._hung}
        reported = [answer for _, answer in sorted(answers.items()) if isinstance(answer, Progress)]
        silent = {index: now - self._silent_since[index] for index in sorted(self._hung & answers.keys())}
        stalled = max(silent.values(), default=0.0 if reported else None)
        return Heartbeat(
            progress=reported[0] if reported else None,
            stalled_seconds=stalled,
            hung=tuple(index for index, seconds in silent.items() if seconds == stalled),
        )

    def _note_hung(self, index: int, answer: Answer) -> None:
        """The kernel accepts connections for a stopped process until its backlog is full, and then connections time out. So a hung pod
        stays hung when it becomes unreachable."""
        if answer is Silence.HUNG:
            self._hung.add(index)
        elif isinstance(answer, Progress) or answer is Silence.NOT_A_TRAINER:
            self._hung.discard(index)

    def _put_off(self, answers: dict[int, Answer]) -> None:
        """Set the next poll of unreachable pods. A hung pod can look unreachable too, and is polled without back-off."""
        for index, answer in answers.items():
            _, waited = self._waits.pop(index, (0.0, 0.0))
            if answer is Silence.UNREACHABLE and index not in self._hung:
                wait = min(2 * waited, LONGEST_WAIT) or FIRST_WAIT
                self._waits[index] = (self.clock() + wait, wait)

    def _stalled(self, status: DPOJobStatus, answers: dict[int, Answer]) -> float | None:
        """Seconds without progress, None without evidence."""
        now, moved, evidence = self.clock(), False, False
        before = status.progress
        # After an operator restart, status.progress shows that rank 0 was reachable before.
        answered = {*self._marks, *([0] if before and before.attempt == status.attempt and before.max_steps else [])}
        for index, answer in answers.items():
            if isinstance(answer, Progress):
                mark = (answer.step, answer.last_step_at, answer.activity)
                moved = moved or answer.step > self._furthest or self._marks.get(index, mark) != mark
                self._marks[index], self._furthest = mark, max(answer.step, self._furthest)
            self._note_hung(index, answer)
            stopped_listening = answer is Silence.NOT_A_TRAINER and index in answered
            evidence = evidence or isinstance(answer, Progress) or index in self._hung or stopped_listening
        if moved or (evidence and self._moved_at is None):
            self._moved_at = now
        return now - self._moved_at if evidence and self._moved_at is not None else None

    def _warn_about_rank0(
        self, pods: Sequence[ChildPod], answers: dict[int, Answer], stalled: float | None, read: Progress | None
    ) -> None:
        """Warn when rank 0 is silent for SILENT_SECONDS and the job is not restarted: others progress, or none is reachable."""
        silence, now = answers.get(0), self.clock()
        if not isinstance(silence, Silence):
            self._rank0_silent_since, self._warned = None, False
            return
        if self._rank0_silent_since is None:
            self._rank0_silent_since = now
        seconds = now - self._rank0_silent_since
        others_progress = read is not None and stalled is not None and stalled < SILENT_SECONDS
        if seconds >= SILENT_SECONDS and not self._warned and (others_progress or stalled is None):
            self._warned = True
            self._pending_events = (silent_event(pods[0], silence.value, seconds, read.step if read else None),)

    def _forget(self, status: DPOJobStatus) -> None:
        """Reset for a new attempt, or when not all ranks run."""
        self._attempt = (status.phase, status.attempt)
        self._marks, self._hung, self._furthest = {}, set(), 0
        self._answered_at, self._silent_since = {}, {}
        self._moved_at, self._rank0_silent_since, self._warned, self._pending_events = None, None, False, ()


def _current(answer: Answer, status: DPOJobStatus) -> Answer:
    """Treat the answer of another attempt as invalid."""
    if isinstance(answer, Progress) and (answer.phase, answer.attempt) != (status.phase, status.attempt):
        return Silence.NOT_A_TRAINER
    return answer
