"""Which end of which pod is the cause of a failure."""

from dataclasses import replace

import pytest

from dpo_operator.api.exitcodes import TABLE, ExitCode, info
from dpo_operator.planning.failures import REASONS, SECONDARY, classify, is_settled, root_cause
from dpo_operator.planning.objects import Exit
from tests.unit.planning.build import a_child, a_pod, a_reading, ended, termination_text

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("code", list(TABLE), ids=lambda c: c.name)
def test_every_exit_code_has_the_class_of_the_table(code):
    outcome = "Stopped" if code == ExitCode.SIGTERM else "Failed"
    failure = classify(ended(0, code, text=termination_text(code, "what the trainer said", outcome=outcome)))
    expected = "counted" if TABLE[code].failure_class == "secondary" else TABLE[code].failure_class
    assert (failure.reason, failure.failure_class) == (TABLE[code].reason, expected)
    assert "what the trainer said" in failure.message
    assert "rank 0 (pod pairs-train-1-0 on node gpu-0)" in failure.message


@pytest.mark.parametrize(
    ("pod", "reason", "failure_class"),
    [
        (ended(0, 137, reason="OOMKilled"), "OOMKilled", "counted"),
        (ended(0, 1), "ProcessFailed", "counted"),
        (ended(0, 137), "Killed", "counted"),
        (ended(0, 137, deleting=True, deleting_seconds=120.0), "Killed", "infrastructure"),
        (ended(0, 137, deleting=True, deleting_seconds=1.0), "Killed", "counted"),
        (ended(0, 143, disruption="EvictionByEvictionAPI", deleting=True), "Evicted", "infrastructure"),
        (ended(0, 137, disruption="PreemptionByScheduler"), "Preempted", "infrastructure"),
        (ended(0, 137, disruption="TerminationByKubelet"), "Evicted", "infrastructure"),
        (ended(0, 65, disruption="EvictionByEvictionAPI"), "BadDataset", "configuration"),
        (a_pod(0, pod_phase="Failed", reason="Evicted", message="low on memory"), "Evicted", "infrastructure"),
        (a_pod(0, pod_phase="Failed", reason="OutOfnvidia.com/gpu"), "OutOfResources", "infrastructure"),
        (a_pod(0, disruption="DeletionByTaintManager", deleting=True, ready=False), "NodeLost", "infrastructure"),
        (a_pod(0, deleting=True, deleting_seconds=200.0), "NodeLost", "infrastructure"),
        (ended(0, 255, reason="Unknown"), "NodeRestarted", "infrastructure"),
        (ended(0, 137, reason="ContainerStatusUnknown"), "NodeRestarted", "infrastructure"),
    ],
    ids=[
        "out of memory", "unknown code", "killed", "killed after its grace period", "killed, then deleted", "evicted", "preempted",
        "node pressure", "own fault during an eviction", "evicted before it ran", "refused by the node", "lost node",
        "deleted and silent", "node started anew", "container of a node that was started anew",
    ],
)  # fmt: skip
def test_ends_that_kubernetes_explains(pod, reason, failure_class):
    failure = classify(pod)
    assert (failure.reason, failure.failure_class) == (reason, failure_class)


@pytest.mark.parametrize(
    "pod",
    [
        a_pod(0),
        ended(0, 0),
        a_pod(0, deleting=True, deleting_seconds=100.0),
        a_pod(0, deleting=True, disruption="EvictionByEvictionAPI"),
        a_pod(0, deleting=True, disruption="DeletionByTaintManager", ready=True),
    ],
    ids=["running", "succeeded", "saving", "evicted and saving", "tainted node that lives"],
)
def test_no_failure_yet(pod):
    assert classify(pod) is None


def test_cause_goes_before_its_consequences_whatever_the_clocks_say():
    # Node 0's clock is an hour behind, so its rank seems to have ended first.
    stopped = ended(0, 143, at="11:00:00", deleting=True)
    peer = ended(1, 75, at="11:00:01")
    killed = ended(2, 137, at="12:00:00")
    assert root_cause(a_child(), [stopped, peer, killed], 3).reason == "Killed"
    assert root_cause(a_child(), [stopped, peer, a_pod(2)], 3).reason == "Terminated"


def test_first_of_two_failures_of_their_own_is_the_cause():
    pods = [ended(0, 70, at="12:00:09"), ended(1, 76, at="12:00:02")]
    assert root_cause(a_child(), pods, 2).reason == "NonFiniteLoss"


def test_furthest_step_of_all_ranks_is_kept():
    progress = a_reading(40).model_dump(mode="json")
    pods = [ended(0, 75, text=termination_text(75, progress=progress)), ended(1, 137)]
    failure = root_cause(a_child(), pods, 2)
    assert (failure.reason, failure.step) == ("Killed", 40)


def test_lost_peer_waits_for_a_better_explanation():
    lost = ended(0, 75)
    pods = [lost, a_pod(1)]
    failure = root_cause(a_child(), pods, 2)
    assert failure.distance == SECONDARY
    assert not is_settled(failure, a_child(), pods)
    assert is_settled(failure, a_child(), [lost, ended(1, 75)])
    assert is_settled(failure, a_child(), [ended(0, 75, failed_seconds=10.0), a_pod(1)])


@pytest.mark.parametrize("code", [134, 139])
def test_an_abort_is_blamed_only_when_nothing_else_failed(code):
    aborted = ended(1, code, at="11:00:00")
    for other, reason in ((ended(0, 70), "InternalError"), (ended(0, 137, reason="OOMKilled"), "OOMKilled")):
        assert root_cause(a_child(), [aborted, other], 2).reason == reason
    evicted = ended(0, 137, disruption="PreemptionByScheduler")
    assert root_cause(a_child(), [aborted, evicted], 2).failure_class == "infrastructure"
    # With gloo the peers of a rank that crashed say that they lost it.
    alone = root_cause(a_child(), [aborted, ended(0, 75, at="10:00:00")], 2)
    assert (alone.reason, alone.exit_code, alone.failure_class) == ("ProcessFailed", code, "counted")
    assert not is_settled(alone, a_child(), [aborted, a_pod(0)])
    # Kubernetes stops the peers of a rank that crashed, and NCCL aborts the peers of one that was stopped: the first is the cause.
    stopped = replace(ended(0, 143, at="11:00:05"), deleting=True)
    assert root_cause(a_child(), [aborted, stopped], 2).exit_code == code
    earlier = replace(ended(0, 143, at="10:59:55"), deleting=True)
    assert root_cause(a_child(), [aborted, earlier], 2).failure_class == "infrastructure"
    gone = root_cause(a_child(), [aborted], 2)
    assert (gone.reason, gone.failure_class) == ("GangIncomplete", "infrastructure")


@pytest.mark.parametrize("peers", [[], [a_pod(1, pod_phase="Pending")]], ids=["taken away", "never started"])
def test_lost_peer_that_is_not_there_is_not_the_jobs_fault(peers):
    failure = root_cause(a_child(), [ended(0, 75), *peers], 2)
    assert (failure.reason, failure.failure_class) == ("GangIncomplete", "infrastructure")
    assert "1 (" in failure.message


def test_failed_job_without_a_failed_pod_lost_it_to_somebody():
    failure = root_cause(a_child(failed=True, failure_message="backoff limit"), [a_pod(0)], 2)
    assert (failure.reason, failure.failure_class) == ("PodDeleted", "infrastructure")
    assert not is_settled(failure, a_child(failed=True, failed_seconds=1.0), [a_pod(0)])
    assert is_settled(failure, a_child(failed=True, failed_seconds=10.0), [a_pod(0)])


@pytest.mark.parametrize("disruption", ["EvictionByEvictionAPI", "PreemptionByScheduler", "TerminationByKubelet"])
def test_an_evicted_pod_that_can_not_be_stopped_is_given_up(disruption: str):
    pod = a_pod(0, deleting=True, disruption=disruption, deleting_seconds=170.0)
    assert classify(pod) is None
    assert classify(replace(pod, deleting_seconds=190.0)).failure_class == "infrastructure"


@pytest.mark.parametrize(
    ("message", "failure_class"),
    [
        ("Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ", "counted"),
        ('Container trainer exceeded its local ephemeral storage limit "1Gi". ', "counted"),
        ('Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". ', "counted"),
        ("The node was low on resource: ephemeral-storage. Threshold quantity: 1, available: 0. ", "infrastructure"),
    ],
)
def test_a_pod_that_outgrew_its_own_limit_counts(message: str, failure_class: str):
    evicted = ended(0, 137, disruption="TerminationByKubelet", message=message)
    assert classify(evicted).failure_class == failure_class
    assert message.strip() in classify(evicted).message
    assert classify(a_pod(0, pod_phase="Failed", reason="Evicted", message=message)).failure_class == failure_class


def test_an_end_by_sigterm_that_nobody_asked_for_counts_unless_it_saved():
    assert classify(ended(0, 143)).failure_class == "counted"
    assert classify(ended(0, 143, deleting=True)).failure_class == "infrastructure"
    saved = termination_text(143, outcome="Stopped")
    assert classify(ended(0, 143, text=saved)).failure_class == "infrastructure"


def test_out_of_memory_says_what_to_change():
    assert "pod.resources.limits.memory" in classify(ended(0, ExitCode.SIGKILL, reason="OOMKilled")).message
    # A launcher that lives on only knows that its child was killed.
    told = ended(0, ExitCode.SIGKILL, reason="OOMKilled", text=termination_text(137, "killed by signal 9"))
    assert "pod.resources.limits.memory" in classify(told).message


def test_log_tail_instead_of_a_report_is_no_error():
    assert "An unexpected exception" in classify(ended(0, 70, text="Traceback (most recent call last): …")).message


UNSEEN = Exit(137, "ContainerStatusUnknown", "", "The container could not be located when the pod was terminated")


@pytest.mark.parametrize(
    "gone",
    [a_pod(1, deleting=True, pod_phase="Failed", exit=UNSEEN), a_pod(1, deleting=True, pod_phase="Failed", node="")],
    ids=["on a node", "without one"],
)
def test_a_pod_that_was_deleted_before_it_ran_is_no_cause(gone):
    wrong = ended(0, 78, text=termination_text(78, "training.learningRate must be above 0"))
    assert root_cause(a_child(failed=True), [wrong, gone], 2).reason == "InvalidConfiguration"
    alone = root_cause(a_child(failed=True), [a_pod(0), gone], 2)
    assert (alone.reason, alone.failure_class) == ("PodDeleted", "infrastructure")


@pytest.mark.parametrize("code", [1, 134, 139, 255, *TABLE])
def test_the_reason_of_every_exit_code_is_a_metric_label(code: int):
    """A restart whose reason is no label would be missing in the operator's metric of restarts."""
    assert info(code).reason in REASONS
