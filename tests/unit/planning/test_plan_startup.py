"""What keeps pods from starting, as Kubernetes' events tell it, and which of it becomes an event of the job."""

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.planning import announcing
from dpo_operator.planning.actions import RetryPodCreation
from dpo_operator.planning.objects import Notice
from dpo_operator.planning.refusals import refusal
from tests.unit.planning.build import a_child, a_claim, a_job, a_pod, a_status, a_view, condition, decide

pytestmark = pytest.mark.unit

QUOTA = 'Error creating: pods "pairs-train-1-1-x7k2p" is forbidden: exceeded quota: few, requested: pods=1, used: pods=1, limited: pods=1'
NO_SECRET = 'MountVolume.SetUp failed for volume "token" : secret "hf" not found'


def job_says(message: str, reason: str = "FailedCreate") -> Notice:
    return Notice(a_child().uid, reason, message)


def pod_says(message: str, reason: str = "FailedMount", index: int = 1) -> Notice:
    return Notice(a_pod(index).uid, reason, message)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (QUOTA, c.QUOTA_EXCEEDED),
        ("failed quota: few: must specify cpu for: trainer", c.QUOTA_EXCEEDED),
        ('pods "x" is forbidden: no PriorityClass with name high was found', c.PRIORITY_CLASS_NOT_FOUND),
        ('admission webhook "guard.example.org" denied the request: no', c.ADMISSION_DENIED),
        ('Internal error occurred: failed calling webhook "guard.example.org": context deadline exceeded', c.ADMISSION_DENIED),
        ("ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no", c.ADMISSION_DENIED),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest": hostNetwork', c.ADMISSION_DENIED),
        ('pods "x" is forbidden: error looking up service account team/default', "Other"),
    ],
)  # fmt: skip
def test_refusals_have_reasons(message, reason):
    assert refusal(message, "Other") == (reason, message)


def test_pods_that_are_not_made_are_explained():
    result = decide(a_status(), a_view(a_child(), a_pod(0), notices=(job_says(QUOTA),)))
    assert condition(result.status, c.RUNNING) == ("False", c.QUOTA_EXCEEDED)
    assert "exceeded quota: few" in result.status.message
    assert result.status.restarts == 0


def test_random_names_and_repetitions_do_not_change_the_message():
    def said(*notices):
        return decide(a_status(), a_view(a_child(), a_pod(0), notices=notices)).status.message

    again = f"(combined from similar events): {QUOTA.replace('x7k2p', 'abcde')}"
    assert said(job_says(QUOTA)) == said(job_says(QUOTA), job_says(again))
    assert "x7k2p" not in said(job_says(QUOTA))


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (a_view(a_child(), a_pod(0), a_pod(1, pod_phase="Pending"), notices=(job_says(QUOTA),)), c.PODS_PENDING),
        (a_view(a_child(), a_pod(0), notices=(Notice("another", "FailedCreate", QUOTA),)), c.PODS_PENDING),
        (a_view(a_child(), a_pod(0), notices=(job_says(QUOTA, "SuccessfulCreate"),)), c.PODS_PENDING),
        (a_view(a_child(), a_pod(0), notices=(job_says("pods is forbidden: new words"),)), c.PODS_REFUSED),
    ],
    ids=["all pods are there by now", "about another object", "another event", "words that are not known"],
)
def test_only_what_still_holds_is_told(view, reason):
    assert condition(decide(a_status(), view).status, c.RUNNING) == ("False", reason)


@pytest.mark.parametrize(
    ("notices", "reason"),
    [
        ((pod_says(NO_SECRET),), c.SECRET_NOT_FOUND),
        ((pod_says('references non-existent secret key: token'),), c.SECRET_NOT_FOUND),
        ((pod_says('configmap "pairs" not found'),), c.MOUNT_FAILED),
        ((pod_says("Multi-Attach error for volume", "FailedAttachVolume"),), c.MOUNT_FAILED),
        ((pod_says(NO_SECRET), pod_says("Pulling image", "Pulling")), c.PODS_PENDING),
        ((pod_says("Assigned", "Scheduled"), pod_says(NO_SECRET)), c.SECRET_NOT_FOUND),
        ((pod_says(NO_SECRET, index=0),), c.PODS_PENDING),
    ],
    ids=["secret", "key", "config map", "attach", "went on since", "newest", "a pod that runs by now"],
)  # fmt: skip
def test_volumes_that_are_not_mounted_are_explained(notices, reason):
    view = a_view(a_child(), a_pod(0), a_pod(1, pod_phase="Pending"), notices=notices)
    assert condition(decide(a_status(), view).status, c.RUNNING) == ("False", reason)


def test_a_gang_that_a_quota_halves_gives_its_nodes_back_and_says_why():
    job = a_job(failurePolicy={"gangTimeoutSeconds": 30})
    view = a_view(a_child(), a_pod(0), notices=(job_says(QUOTA),), placing_seconds=30.0)
    result = decide(a_status(), view, job)
    assert condition(result.status, c.RUNNING) == ("False", c.GANG_TIMED_OUT)
    assert "exceeded quota: few" in result.status.message
    assert [action.value for action in result.actions] == [True]


@pytest.mark.parametrize(
    ("notices", "may", "kinds"),
    [((job_says(QUOTA),), True, [RetryPodCreation]), ((job_says(QUOTA),), False, []), ((), True, [])],
    ids=["refused", "tried just now", "no refusal"],
)
def test_refused_pods_are_tried_again(notices, may, kinds):
    view = a_view(a_child(), a_pod(0), notices=notices, may_try_again=may)
    assert [type(action) for action in decide(a_status(), view).actions] == kinds
    whole = a_view(a_child(), a_pod(0), a_pod(1, pod_phase="Pending"), notices=notices, may_try_again=may)
    assert decide(a_status(), whole).actions == ()


@pytest.mark.parametrize(("waited", "again"), [(0.0, 5.0), (4.0, 1.0), (5.0, 10.0), (299.0, 10.0), (300.0, 30.0)])
def test_pods_that_do_not_run_are_looked_at_again(waited, again):
    view = a_view(a_child("prepare"), a_pod(0, "prepare", pod_phase="Pending"), waiting_seconds=waited)
    assert decide(a_status("prepare"), view).requeue_after == again


def waits(reason: str):
    """A status whose pods wait for this reason."""
    pod = a_pod(0, "prepare", pod_phase="Pending")
    views = {
        c.PODS_PENDING: a_view(a_child("prepare"), pod),
        c.VOLUME_PENDING: a_view(a_child("prepare"), pod, claim=a_claim(bound=False)),
        c.UNSCHEDULABLE: a_view(a_child("prepare"), a_pod(0, "prepare", pod_phase="Pending", unscheduled="0/3 nodes")),
        c.IMAGE_PULL_FAILED: a_view(
            a_child("prepare"), a_pod(0, "prepare", pod_phase="Pending", waiting=("ErrImagePull", "no such tag"))
        ),
    }
    return decide(a_status("prepare"), views[reason]).status


@pytest.mark.parametrize(
    ("reason", "after"),
    [(c.PODS_PENDING, 30.0), (c.VOLUME_PENDING, 30.0), (c.UNSCHEDULABLE, 5.0), (c.IMAGE_PULL_FAILED, 0.0)],
)
def test_an_obstacle_is_announced_once_it_is_none_of_an_ordinary_start(reason, after):
    status = waits(reason)
    event = announcing.obstacle_event(status, after)
    assert event is not None
    assert (event.type, event.reason, event.message) == ("Warning", reason, status.message)
    assert announcing.obstacle_event(status, after - 0.1) is None or after == 0.0


def test_what_runs_or_waits_by_design_is_no_obstacle():
    running = decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1))).status
    queued = decide(a_status(), a_view(a_child(suspended=True), may_place=False)).status
    assert condition(queued, c.RUNNING) == ("False", c.QUEUED)
    for status in (running, queued):
        assert announcing.obstacle_event(status, 1000.0) is None


def test_a_missing_claim_that_only_the_scheduler_reports_is_announced():
    words = '0/3 nodes are available: persistentvolumeclaim "data" not found. not found'
    pod = a_pod(0, "prepare", pod_phase="Pending", node="", unscheduled=words)
    status = decide(a_status("prepare"), a_view(a_child("prepare"), pod, claim=a_claim(bound=False))).status
    assert condition(status, c.RUNNING) == ("False", c.VOLUME_NOT_FOUND)
    assert words in status.message
    assert announcing.obstacle_event(status, 0.0) is not None
