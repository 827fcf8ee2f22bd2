"""A cluster in memory, small enough to try thousands of histories: jobs, pods, their controllers, and faults.

It holds what decisions depend on and no more; the real API server and real kubelets are in other tiers.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from dpo_operator.api import names
from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.shape import SIZED
from dpo_operator.planning import certainty
from dpo_operator.planning.actions import Action, Create, Delete, Patch, SuspendJob
from dpo_operator.planning.objects import ChildJob, ChildPod, Claim, Exit, Support
from dpo_operator.planning.observed import Fact, Observed
from dpo_operator.planning.plan import plan
from tests.unit.planning.build import NOON, SETTINGS, TOKEN, UID, a_claim, a_job, termination_text

STEPS = 3
PASS_SECONDS = certainty.SECOND_LOOK_SECONDS + 1
# Wrong answers of the API.
LIES = ("no Jobs", "no pods", "no claim", "old Jobs", "old pods")


@dataclass
class World:
    """One DPOJob in its cluster. steps: optimizer steps that are committed on the volume. ends: why a round's judge ends the rounds.
    ill: legs of a sweep that end as unhealthy. accuracy: of the others, by leg.

    begun: phases that have begun. steps_made: these phases and their rounds or legs, as far as this cluster has seen them begin.
    """

    job: DPOJob = field(default_factory=a_job)
    status: DPOJobStatus = field(default_factory=DPOJobStatus)
    jobs: dict[str, ChildJob] = field(default_factory=dict)
    pods: dict[str, ChildPod] = field(default_factory=dict)
    claim: Claim | None = None
    support: tuple[Support, ...] = ()
    now: datetime = NOON
    steps: int = 0
    made: int = 0
    suspensions: int = 0
    jobs_suspended: int = 0
    suspensions_of_jobs: int = 0
    begun: int = 0
    steps_made: list[tuple[str, int]] = field(default_factory=list)
    ends: dict[int, str] = field(default_factory=dict)
    ill: frozenset[int] = frozenset()
    accuracy: dict[int, float] = field(default_factory=dict)
    since: dict[Fact, datetime] = field(default_factory=dict)
    before: Observed = field(default_factory=Observed)
    lied: bool = False

    def __post_init__(self) -> None:
        self.begun = sum(self.status.attempts.of(phase) > 0 for phase in names.PHASES)

    # The operator

    def reconcile(self, writes: int = 99, lie: str = "") -> None:
        """One pass of the operator, which dies after so many writes. lie: what the API answers wrongly, never twice in a row."""
        true = Observed(
            jobs=tuple(self.jobs.values()),
            pods=tuple(self.pods.values()),
            claim=self.claim,
            support=self.support,
            claim_token=TOKEN,
        )
        seen = true if self.lied else self.falsified(true, lie)
        self.lied = seen is not true
        facts = certainty.facts(self.status, seen)
        self.since = {fact: self.since.get(fact, self.now) for fact in facts}
        held = {fact: (self.now - since).total_seconds() for fact, since in self.since.items()}
        seen = replace(seen, held=held)
        decision = plan(self.job, self.status, seen, self.now, SETTINGS)
        self.now += timedelta(seconds=PASS_SECONDS)
        if decision.status != self.status:
            if writes == 0:
                return
            writes -= 1
            self.check_counters(decision.status)
            # What isn't in the stored form is lost when the operator dies.
            self.status = DPOJobStatus.model_validate(decision.status.to_dict())
        for action in decision.actions[:writes]:
            self.carry_out(action)

    def falsified(self, true: Observed, lie: str) -> Observed:
        """What is seen when the API answers wrongly. Old: as of the first pass that saw a Job of this attempt."""
        if not any(job.belongs_to(self.status.phase, self.status.attempt) for job in self.before.jobs):
            self.before = true
        wrong = {
            "no Jobs": replace(true, jobs=()),
            "no pods": replace(true, pods=()),
            "no claim": replace(true, claim=None),
            "old Jobs": replace(true, jobs=self.before.jobs),
            "old pods": replace(true, pods=self.before.pods),
        }
        return wrong.get(lie, true)

    def carry_out(self, action: Action) -> None:
        if isinstance(action, SuspendJob):
            job = self.jobs.get(action.name)
            if job is not None and job.uid == action.uid:
                self.jobs[action.name] = replace(job, suspended=action.value)
        elif isinstance(action, Delete):
            self.delete(action.kind, action.name, action.uid)
        elif isinstance(action, Patch):
            raise AssertionError(f"{action.name} was never made for other settings")
        elif action.kind == "Job":
            self.create_job(action)
        elif action.kind == "PersistentVolumeClaim":
            self.claim = self.claim or a_claim(owner_uid=None)
        elif action.kind not in {support.kind for support in self.support}:
            self.support = (*self.support, Support(action.kind, UID))

    def create_job(self, action: Create) -> None:
        labels = action.manifest["metadata"]["labels"]
        if action.name in self.jobs:
            return
        live = [pod.name for pod in self.pods.values() if not pod.ended]
        assert not live, f"{action.name} is made while {live} live"
        self.made += 1
        phase, attempt = labels["dpo-operator.dev/phase"], int(labels["dpo-operator.dev/attempt"])
        uid = f"{action.name}#{self.made}"
        suspended = bool(action.manifest.get("spec", {}).get("suspend"))
        self.jobs[action.name] = ChildJob(action.name, uid, phase, attempt, deleting=False, suspended=suspended)

    def delete(self, kind: str, name: str, uid: str) -> None:
        if kind == "Job" and name in self.jobs and self.jobs[name].uid == uid:
            del self.jobs[name]
        elif kind == "Pod" and name in self.pods and self.pods[name].uid == uid:
            self.stop(name)

    def check_counters(self, new: DPOJobStatus) -> None:
        """No attempt is skipped and none comes twice: each is a phase's first, a restart or a suspension."""
        old = self.status
        same = (new.phase, new.round, new.leg) == (old.phase, old.round, old.leg)
        if new.phase is not None and not same:
            self.begun += 1
            self.steps_made.append((new.phase, new.round or new.leg))
        total = sum(new.attempts.of(phase) for phase in names.PHASES)
        before = sum(old.attempts.of(phase) for phase in names.PHASES)
        assert 0 <= total - before <= 1
        if self.job.spec.suspend and total > before and new.restarts == old.restarts and same:
            self.suspensions += int(old.phase is not None)
        elif total > before and new.restarts == old.restarts and same:
            # Somebody suspended the Job of a phase that ran.
            assert self.jobs_suspended > self.suspensions_of_jobs
            self.suspensions_of_jobs += 1
            self.suspensions += 1
        assert total == self.begun + new.restarts + self.suspensions
        assert not (old.is_final and new != old)

    # Kubernetes

    def run_controllers(self) -> None:
        """Job controller and garbage collector."""
        for name, job in list(self.jobs.items()):
            own = [pod for pod in self.pods.values() if pod.name.startswith(f"{name}-")]
            if job.suspended and not job.finished:
                self.stop_suspended(own)
                own = [pod for pod in own if pod.name in self.pods and not pod.deleting]
            if any(pod.ended and not pod.succeeded for pod in own):
                self.jobs[name] = replace(job, failed=True)
                for pod in own:
                    self.stop(pod.name)
                continue
            desired = 2 if job.phase in SIZED else 1
            if len([pod for pod in own if pod.succeeded]) == desired:
                self.jobs[name] = replace(job, complete=True)
            elif not job.finished and not job.suspended:
                for index in {*range(desired)} - {pod.index for pod in own}:
                    self.create_pod(job, index)
        for pod in list(self.pods.values()):
            if pod.name.rpartition("-")[0] not in self.jobs:
                self.stop(pod.name)
                if pod.ended:
                    del self.pods[pod.name]

    def stop_suspended(self, own: list[ChildPod]) -> None:
        """Pods of a suspended Job go, and how they end counts for nothing."""
        for pod in own:
            self.stop(pod.name)
            if pod.deleting and pod.ended:
                del self.pods[pod.name]

    def create_pod(self, job: ChildJob, index: int) -> None:
        others = [p.name for p in self.pods.values() if not p.ended and not p.belongs_to(job.phase, job.attempt)]
        assert not others, f"a pod of {job.name} starts while {others} live"
        self.made += 1
        name = f"{job.name}-{index}"
        uid = f"{name}#{self.made}"
        self.pods[name] = ChildPod(name, uid, job.phase, job.attempt, deleting=False, index=index)

    def run_kubelets(self) -> None:
        """Start what waits; end what is being deleted, which takes one step."""
        for name, pod in list(self.pods.items()):
            if pod.deleting and not pod.ended:
                self.end(name, 143)
            elif pod.deleting and pod.name.rpartition("-")[0] not in self.jobs:
                del self.pods[name]
            elif pod.pod_phase == "Pending":
                self.pods[name] = replace(pod, pod_phase="Running", ready=True)

    def stop(self, name: str) -> None:
        pod = self.pods[name]
        if not pod.ended:
            self.pods[name] = replace(pod, deleting=True, grace_seconds=120)

    def end(self, name: str, code: int, text: str = "") -> None:
        pod = self.pods[name]
        end = Exit(code, "Completed" if code == 0 else "Error", self.now.isoformat(), text)
        self.pods[name] = replace(pod, pod_phase="Failed" if code else "Succeeded", ready=False, exit=end)

    # The trainer

    def work(self) -> None:
        """One unit of work of a phase whose pods all run."""
        running = [pod for pod in self.pods.values() if pod.running and not pod.deleting]
        train = [pod for pod in running if pod.phase == "train"]
        if len(train) == 2 and self.steps < STEPS:
            self.steps += 1
        elif len(train) == 2 or (running and not train):
            for pod in running:
                self.end(
                    pod.name, 0, termination_text(0, phase=pod.phase, attempt=pod.attempt, **self.report(pod.phase))
                )

    def report(self, phase: str) -> dict[str, Any]:
        """What a judge says of its round, and of the win rate of the round before; what a training says of its leg."""
        number = self.status.round
        if leg := self.status.leg:
            outcome = "Unhealthy" if leg in self.ill else "Trained"
            return {"leg": {"leg": leg, "outcome": outcome, "steps": STEPS, "accuracy": self.accuracy.get(leg, 0.5)}}
        if phase != "judge":
            return {}
        now = {"round": number, "prompts": 100, "pairs": 60, "ended": self.ends.get(number, "")}
        before = {"compared": {"round": number - 1, "pairs": 60, "win_rate_previous": 0.625}} if number > 1 else {}
        return {"round": now} | before

    # Faults

    def kill(self, which: int, code: int) -> None:
        """End one running pod."""
        running = sorted(name for name, pod in self.pods.items() if pod.running)
        if running:
            progress = {"phase": "train", "attempt": 1, "step": self.steps}
            self.end(running[which % len(running)], code, termination_text(code, progress=progress))

    def evict(self, which: int) -> None:
        """Ask one pod to go."""
        running = sorted(name for name, pod in self.pods.items() if pod.running)
        if running:
            name = running[which % len(running)]
            self.pods[name] = replace(self.pods[name], disruption="EvictionByEvictionAPI")
            self.stop(name)

    def delete_jobs(self) -> None:
        """An outsider deletes all Jobs."""
        self.jobs.clear()

    def suspend_jobs(self) -> None:
        """An outsider suspends all Jobs that are not finished."""
        for name, job in self.jobs.items():
            if not job.finished and not job.suspended:
                self.jobs[name] = replace(job, suspended=True)
                self.jobs_suspended += 1

    def resume_jobs(self) -> None:
        """The outsider resumes those that no turn is waited for."""
        for name, job in self.jobs.items():
            if job.phase != "train":
                self.jobs[name] = replace(job, suspended=False)

    def suspend(self, value: bool) -> None:
        """A user sets spec.suspend."""
        spec = self.job.spec.model_copy(update={"suspend": value})
        generation = self.job.metadata.generation + 1
        metadata = self.job.metadata.model_copy(update={"generation": generation})
        self.job = self.job.model_copy(update={"spec": spec, "metadata": metadata})

    def disturb(self, data: st.DataObject) -> None:
        """Up to forty turns in which pods die, nodes are drained, and the operator dies after any write; then, unless the job failed, its end."""
        for _ in range(data.draw(st.integers(0, 40))):
            match data.draw(st.sampled_from(["run", "run", "run", "die", "kill", "evict"])):
                case "die":
                    self.reconcile(writes=data.draw(st.integers(0, 2)))
                case "kill":
                    self.kill(data.draw(st.integers(0, 3)), data.draw(st.sampled_from([1, 137, 143])))
                case "evict":
                    self.evict(data.draw(st.integers(0, 3)))
                case _:
                    self.reconcile()
            self.run_controllers()
            self.run_kubelets()
            self.work()
        if self.status.state is not State.FAILED:
            self.settle()

    def settle(self) -> None:
        """Let everything run without faults until the job ends."""
        self.suspend(False)
        self.resume_jobs()
        for _ in range(200):
            if self.status.is_final:
                return
            self.reconcile()
            self.run_controllers()
            self.run_kubelets()
            self.work()
            self.now += timedelta(seconds=61)
        raise AssertionError(f"not at an end: {self.status.to_dict()}")


def a_world(**policy: int) -> World:
    """A job that may restart as often as faults want it to."""
    return World(job=a_job(failurePolicy={"maxRestarts": 1000} | policy))
