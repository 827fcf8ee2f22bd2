"""Jobs at work, at their end, or set aside."""

from typing import Any

from dpo_operator.api.diagnosis import Code, Finding
from dpo_operator.api.reports import SlowestRank
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.explain.case import Case
from dpo_operator.planning.objects import ChildPod
from dpo_operator.planning.plan import plan
from tests.unit.explain.cases import Raw, Situations, a_finding, case, ended, event, raw_pod
from tests.unit.planning.build import NOON, SETTINGS, a_child, a_job, a_pod, a_reading, a_status, a_view, decide

RUNNING = Situations()


def runs(
    progress: Any = None,
    minutes: float = 0.2,
    findings: tuple[Finding, ...] = (),
    events: tuple[Raw, ...] = (),
    **spec: Any,
) -> Case:
    pods = (raw_pod(0, node="gpu-0", phase="Running"), raw_pod(1, node="gpu-1", phase="Running"))
    view = a_view(
        a_child(),
        *(ChildPod.from_raw(p) for p in pods),
        progress=progress or a_reading(12, checkpoint=10),
        stalled_seconds=1.0,
    )
    job = a_job(**spec)
    return case(decide(a_status(), view, job).status, job, pods=pods, minutes=minutes, findings=findings, events=events)


@RUNNING.add
def it_trains_well() -> Case:
    return runs()


@RUNNING.add
def it_has_been_silent() -> Case:
    silent = "Rank 0 could not be reached for 31 s: pod pairs-train-1-0-x7k2p on node gpu-0. No other rank that was asked answers either, so a hang could not be detected. Allow the operator to reach port metrics of the job's pods."
    return runs(minutes=4, events=(event("DPOJob pairs", "HeartbeatSilent", silent),))


@RUNNING.add
def one_rank_is_slow() -> Case:
    return runs(a_reading(12, slowest=SlowestRank(rank=1, ratio=2.5)))


for finding in Code:
    RUNNING[f"finding {finding}"] = lambda code=finding: runs(findings=(a_finding(code),))


def completes(findings: tuple[Finding, ...] = ()) -> Case:
    reading = a_reading(100).model_dump(mode="json")
    done = ended(0, 0, "Finished after 100 steps.", reason="Completed", progress=reading, outcome="Succeeded")
    rest = ended(1, 0, "Finished.", reason="Completed")
    trained = decide(a_status(), a_view(a_child(complete=True), *(ChildPod.from_raw(p) for p in (done, rest)))).status
    exported = ended(0, 0, "Exported.", reason="Completed", phase="export", export_path="export")
    view = a_view(a_child("export", complete=True), ChildPod.from_raw(exported))
    return case(decide(trained, view).status, findings=findings)


@RUNNING.add
def it_is_complete() -> Case:
    return completes()


@RUNNING.add
def it_is_complete_and_ill() -> Case:
    return completes((a_finding(Code.GIBBERISH),))


@RUNNING.add
def it_is_complete_with_a_warning() -> Case:
    return completes((a_finding(Code.NOISY_LABELS, "Warning"),))


@RUNNING.add
def it_is_suspended() -> Case:
    job = a_job(suspend=True)
    return case(decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1)), job).status, job)


@RUNNING.add
def another_controller_has_it() -> Case:
    job = a_job(managedBy="kueue.x-k8s.io/multikueue")
    return case(plan(job, DPOJobStatus(), a_view(), NOON, SETTINGS).status, job)


@RUNNING.add
def it_is_being_deleted() -> Case:
    return case(a_status(), deletionTimestamp="2026-01-01T12:00:00Z")
