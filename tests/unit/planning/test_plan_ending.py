"""What is left of a job's pods after its end, after its deletion, and beside containers that are not the trainer's."""

from dataclasses import replace
from datetime import timedelta

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api.status import State
from dpo_operator.planning import ending
from dpo_operator.planning.actions import Delete
from dpo_operator.planning.objects import ChildPod
from dpo_operator.planning.transitions import Moment, completed, settled
from tests.unit.planning.build import NOON, UID, a_child, a_job, a_pod, a_status, a_view, condition, decide, ended

pytestmark = pytest.mark.unit

AT_NOON = Moment(NOON, 1)
GOING = {"deletionTimestamp": "2026-01-01T12:00:00Z"}
LOST = {"deleting": True, "deleting_seconds": 11, "disruption": "DeletionByTaintManager", "ready": False}


@pytest.mark.parametrize("policy", ["Running", "All", "None"])
def test_a_pod_of_a_lost_node_is_removed_by_force_after_the_jobs_end_too(policy):
    """It would hold the claim, and with that the namespace, for as long as the node is away."""
    job = a_job(cleanPodPolicy=policy)
    failed = decide(a_status(), a_view(a_child(), a_pod(0), ended(1, 65)), job).status
    going = a_view(a_child(deleting=True), a_pod(0, **LOST), ended(1, 65))
    result = decide(failed, going, job)
    assert Delete("Pod", a_pod(0).name, a_pod(0).uid, 0) in result.actions
    assert result.requeue_after == ending.MIN_DELAY_SECONDS
    saving = decide(failed, a_view(a_child(deleting=True), a_pod(0, deleting=True), ended(1, 65)), job)
    assert [a for a in saving.actions if a.kind == "Pod"] == []
    # Time alone may make it a lost one, after its whole grace period and a minute.
    assert saving.requeue_after == 181
    assert decide(failed, a_view(a_child(failed=True), ended(0, 143), ended(1, 65)), job).requeue_after is None


def test_a_pod_on_a_lost_node_is_force_deleted_with_its_job():
    job = a_job(metadata=GOING | {"finalizers": ["example.org/keep"]})
    removal = Delete("Pod", a_pod(0).name, a_pod(0).uid, 0)
    result = decide(a_status(), a_view(a_child(deleting=True), a_pod(0, **LOST)), job)
    assert (result.actions, result.requeue_after) == ((removal,), ending.MIN_DELAY_SECONDS)
    assert ending.last_removals([a_pod(0, **LOST), a_pod(1, deleting=True)]) == (removal,)


def with_sidecar(code: int, seconds: float, phase: str = "train", index: int = 0):
    """A pod whose trainer has ended, and another container of which goes on."""
    return ended(index, code, phase=phase, pod_phase="Running", failed_seconds=seconds)


def test_the_trainers_exit_decides_not_a_sidecars():
    failed = decide(a_status(), a_view(a_child(), with_sidecar(137, 0.0), a_pod(1))).status
    assert condition(failed, c.RESTARTING) == ("True", "Killed")
    done = decide(a_status(), a_view(a_child(), with_sidecar(0, 0.0), with_sidecar(0, 0.0, index=1))).status
    assert done.phase == "export"


def test_a_container_that_lingers_after_its_trainer_holds_no_gpus():
    status, train = a_status("export"), a_child("train")
    current = (a_child("export"), a_pod(0, "export"))
    for seconds, removed in ((29.0, []), (31.0, [train.name])):
        pods = (with_sidecar(0, seconds), with_sidecar(0, seconds, index=1))
        result = decide(status, a_view(train, *pods, *current))
        assert [a.name for a in result.actions] == removed
        # What runs goes on being followed, also while the lingering pods stop.
        assert result.status.state is State.EXPORTING
    going = [replace(with_sidecar(0, 40.0, index=i), deleting=True) for i in (0, 1)]
    result = decide(status, a_view(*going, *current))
    assert (result.actions, result.status.state) == ((), State.EXPORTING)
    done = settled(completed(status, AT_NOON), AT_NOON)
    early = decide(done, a_view(a_child("export"), with_sidecar(0, 1.0, "export")))
    assert (early.actions, early.requeue_after) == ((), 30.0)
    kept = decide(done, a_view(a_child("export"), with_sidecar(0, 99.0, "export")), a_job(cleanPodPolicy="None"))
    assert (kept.actions, kept.requeue_after) == ((), None)
    late = decide(done, a_view(a_child("export"), with_sidecar(0, 31.0, "export")))
    assert [(a.verb, a.kind, a.name) for a in late.actions] == [("delete", "Job", "pairs-export-1")]


def test_the_trainers_state_is_found_among_those_of_other_containers():
    def pod(*statuses):
        metadata = {"name": "pairs-train-1-0", "uid": "u", "labels": {}}
        return ChildPod.from_raw({"metadata": metadata, "status": {"phase": "Running", "containerStatuses": statuses}})

    # The kubelet sorts them by name.
    proxy = {"name": "istio-proxy", "state": {"running": {}}}
    ended_ = pod(proxy, {"name": "trainer", "state": {"terminated": {"exitCode": 65, "message": "bad"}}})
    assert (ended_.exit.code, ended_.exit.text, ended_.running) == (65, "bad", False)
    waiting = pod(proxy, {"name": "trainer", "state": {"waiting": {"reason": "ErrImagePull"}}})
    assert waiting.waiting == ("ErrImagePull", "")
    assert pod(proxy, {"name": "zz", "state": {"terminated": {"exitCode": 1}}}).exit is None


def test_finished_job_is_deleted_when_its_time_to_live_is_over():
    job = a_job(ttlSecondsAfterFinished=60)
    done = settled(completed(a_status("export"), AT_NOON), AT_NOON)
    early = decide(done, a_view(), job, now=NOON + timedelta(seconds=59))
    assert (early.actions, early.requeue_after) == ((), 1.0)
    assert decide(done, a_view(), job, now=NOON + timedelta(seconds=60)).actions == (Delete("DPOJob", "pairs", UID),)


def test_finished_job_keeps_the_pods_whose_job_is_not_yet_marked_as_done():
    done = settled(completed(a_status("export"), AT_NOON), AT_NOON)
    assert decide(done, a_view(a_child("export"), ended(0, 0, phase="export"))).actions == ()
    assert [action.name for action in decide(done, a_view(a_child("export"))).actions] == ["pairs-export-1"]


def test_failed_job_keeps_the_pods_that_explain_it():
    failed = decide(a_status(), a_view(a_child(), a_pod(0), ended(1, 65))).status
    assert failed.state is State.FAILED
    assert decide(failed, a_view(a_child(), a_pod(0), ended(1, 65))).actions == ()


@pytest.mark.parametrize(
    "job",
    [a_job(managedBy="example.com/another"), a_job(metadata=GOING | {"finalizers": ["orphan"]})],
    ids=["managed by another", "being deleted alone"],
)
def test_job_that_is_not_ours_to_act_on_is_left_alone(job):
    status = a_status()
    result = decide(status, a_view(a_child(), ended(0, 70), a_pod(1)), job)
    assert (result.status, result.actions, result.events) == (status, (), ())


def test_deleted_job_that_a_finalizer_holds_trains_no_longer():
    job = a_job(metadata=GOING | {"finalizers": ["example.org/keep"]})
    result = decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1)), job)
    assert result.status == a_status()
    assert [(a.verb, a.kind, a.uid) for a in result.actions] == [("delete", "Job", a_child().uid)]
    assert decide(a_status(), a_view(a_child(deleting=True), a_pod(0)), job).actions == ()
