"""Labels make no object a job's own."""

import pytest

from dpo_operator.api import names
from dpo_operator.api.status import ActiveJob
from dpo_operator.reconcile.ownership import Ownership, is_leftover
from tests.unit.planning.build import UID, a_child, a_job, a_pod, a_status, a_view, decide

pytestmark = pytest.mark.unit


def raw(uid: str, owner: str | None, *, controller: bool = True, **metadata):
    references = [] if owner is None else [{"kind": "Job", "name": "j", "uid": owner, "controller": controller}]
    return {"metadata": {"name": uid, "uid": uid, "ownerReferences": references} | metadata}


def uids(items) -> list[str]:
    return [item["metadata"]["uid"] for item in items]


def test_only_pods_of_the_jobs_own_jobs_count():
    own = Ownership()
    assert uids(own.own_jobs([raw("one", UID), raw("planted", "other"), raw("loose", None)], UID)) == ["one"]
    pods = [
        raw("mine", "one"),
        raw("of a planted Job", "planted"),
        raw("of a ConfigMap", "anything"),
        raw("of nobody", None),
        raw("no controller", "one", controller=False),
    ]
    assert uids(own.own_pods(pods, a_status(created=False))) == ["mine"]


def test_pods_of_jobs_that_the_status_names_count_without_their_job():
    """An operator that was restarted has nothing else."""
    status = a_status(earlier_jobs=[ActiveJob(name="pairs-train-1", uid="before")])
    pods = [raw("now", "uid-pairs-train-1"), raw("then", "before"), raw("never", "unknown")]
    assert uids(Ownership().own_pods(pods, status)) == ["now", "then"]


def test_pod_that_was_the_jobs_own_counts_without_its_controller():
    own, status = Ownership(), a_status()
    own.own_pods([raw("mine", "uid-pairs-train-1")], status)
    assert uids(own.own_pods([raw("mine", None), raw("planted", None)], status)) == ["mine"]


def test_jobs_that_exist_no_more_are_remembered():
    own = Ownership()
    own.own_jobs([raw("one", UID)], UID)
    assert own.own_jobs([], UID) == []
    assert uids(own.own_pods([raw("mine", "one")], a_status(created=False))) == ["mine"]


def test_status_names_the_jobs_of_earlier_attempts():
    running = decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1))).status
    assert running.earlier_jobs == []
    lost = decide(running, a_view(a_pod(0), a_pod(1))).status
    assert (lost.active_job, [job.uid for job in lost.earlier_jobs]) == (None, ["uid-pairs-train-1"])
    held = decide(running, a_view(a_child(), a_pod(0), a_pod(1)), a_job(suspend=True)).status
    assert (held.active_job, [job.uid for job in held.earlier_jobs]) == (None, ["uid-pairs-train-1"])
    for attempt in range(2, 30):
        status = a_status(attempt=attempt, earlier_jobs=lost.earlier_jobs)
        lost = decide(status, a_view()).status
    assert [job.name for job in lost.earlier_jobs] == [f"pairs-train-{n}" for n in range(20, 30)]


def leftover(labels=None, owner="pairs-train-1", kind="Job", **metadata):
    labels = {names.LABEL_JOB: "pairs", names.LABEL_PHASE: "train", names.LABEL_ATTEMPT: "1"} | (labels or {})
    references = [{"kind": kind, "name": owner, "uid": "x", "controller": True}]
    return {
        "metadata": {"labels": labels, "deletionTimestamp": "2026-01-01T12:00:00Z", "ownerReferences": references}
        | metadata
    }


def test_leftover_pods_are_those_of_an_attempts_job():
    assert is_leftover(leftover())
    going = leftover()
    del going["metadata"]["deletionTimestamp"]
    assert not is_leftover(going)
    assert not is_leftover(leftover(owner="pairs-train-2"))
    assert not is_leftover(leftover(kind="ConfigMap"))
    assert not is_leftover(leftover(ownerReferences=[]))
    assert not is_leftover(leftover({names.LABEL_JOB: ""}))


@pytest.mark.parametrize("name", ["", "Pairs", "0pairs", "pairs.1", "a_b", "a" * 45, None])
def test_label_that_is_no_jobs_name_names_no_job(name):
    labels = {} if name is None else {names.LABEL_JOB: name}
    assert names.job_of({"metadata": {"labels": labels}}) is None
    assert names.job_of({"metadata": {"labels": {names.LABEL_JOB: "pairs"}}}) == "pairs"
