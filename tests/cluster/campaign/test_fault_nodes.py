"""A node is lost, drained, restarted; its pods are evicted or preempted."""

import signal
import time
from typing import Any

import pytest

from tests.cluster.scenario import Job
from tests.cluster.witness import Undisturbed, check, claim_uid, witness

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(900)]

Spec = dict[str, Any]


def node_of(pod: dict[str, Any]) -> str:
    return str(pod["spec"]["nodeName"])


def wait_until_ready(job: Job, node: str) -> None:
    job.cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=90s")


@pytest.mark.fault(17)
@pytest.mark.parametrize("how", ["cable", "frozen"])
def test_node_is_lost(job: Job, spec: Spec, undisturbed: Undisturbed, how: str) -> None:
    """The gang runs elsewhere within 90 s; what still lives on the lost node commits nothing."""
    with witness(job) as seen:
        job.apply(spec)
        job.wait_for_checkpoint(4)
        volume = claim_uid(job)
        lost = job.cluster.node(node_of(job.pods("train")[1]))
        began = time.monotonic()
        try:
            if how == "cable":
                job.cluster.cut_link(lost.name)
            else:
                lost.stop_everything(signal.SIGSTOP)
            status = job.wait(
                lambda s: (
                    s["attempts"]["train"] == 2
                    and s["progress"].get("attempt") == 2
                    and s["progress"]["step"] > (s["progress"].get("resumedFromStep") or 0)
                ),
                "a step of attempt 2",
                timeout=150,
            )
            elsewhere = time.monotonic() - began
            print(f"\nnode lost ({how}) → gang trains elsewhere: {elsewhere:.1f} s")
        finally:
            if how == "cable":
                job.cluster.restore_link(lost.name)
            else:
                lost.stop_everything(signal.SIGCONT)
        assert elsewhere <= 90
        assert lost.name not in {node_of(pod) for pod in job.pods("train")}
        assert status["restartHistory"][0]["counting"] == "Uncounted"
        wait_until_ready(job, lost.name)
        job.wait_for_state("Complete")
    check(job, undisturbed, restarts=1, counted=0, volume=volume)
    assert {attempt for attempt, _ in seen.lives().values()} == {1, 2}


@pytest.mark.fault(18)
def test_kubelet_restarts(job: Job, spec: Spec, undisturbed: Undisturbed) -> None:
    with witness(job) as seen:
        job.apply(spec)
        job.wait_for_step(4)
        volume = claim_uid(job)
        job.cluster.node(node_of(job.pods("train")[0])).restart_kubelet()
        job.wait_for_state("Complete")
    check(job, undisturbed, restarts=0, counted=0, volume=volume)
    assert len(seen.lives()) == 2


def saved_last(job: Job, step: int) -> None:
    """Training went on from a save that was made after the step: that of SIGTERM."""
    resumed = job.status["progress"]["resumedFromStep"]
    assert resumed >= step, f"went on at step {resumed}; step {step} had been finished"


@pytest.mark.fault(16)
def test_node_is_drained(job: Job, spec: Spec, undisturbed: Undisturbed) -> None:
    """As an administrator does it, with the gang's own disruption budget in the way."""
    with witness(job):
        job.apply(spec)
        step = job.wait_for_step(6)["progress"]["step"]
        volume = claim_uid(job)
        node = node_of(job.pods("train")[1])
        try:
            job.cluster.kubectl(
                "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=100s", timeout=120
            )
            job.wait(lambda s: s["progress"].get("attempt") == 2 and s["progress"].get("resumedFromStep"), "attempt 2")
            saved_last(job, step)
        finally:
            job.cluster.kubectl("uncordon", node)
        job.wait_for_state("Complete")
    assert job.status["restartHistory"][0]["reason"] in ("Evicted", "Terminated")
    check(job, undisturbed, restarts=1, counted=0, volume=volume)


@pytest.mark.fault(16)
def test_pod_is_preempted(job: Job, spec: Spec, undisturbed: Undisturbed) -> None:
    """A pod of a higher class takes the GPU of one rank, and gives it back."""
    high = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "above-all"}}
    job.cluster.apply(high | {"value": 1000})
    with witness(job):
        job.apply(spec)
        step = job.wait_for_step(6)["progress"]["step"]
        volume = claim_uid(job)
        victim = node_of(job.pods("train")[0])
        intruder = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "intruder", "namespace": "default"},
            "spec": {
                "priorityClassName": "above-all",
                "terminationGracePeriodSeconds": 0,
                "nodeSelector": {"kubernetes.io/hostname": victim},
                "tolerations": [{"operator": "Exists"}],
                "containers": [
                    {
                        "name": "sleep",
                        "image": "dpo-operator:dev",
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["python", "-c", "import time; time.sleep(600)"],
                        "resources": {"limits": {"nvidia.com/gpu": "1"}},
                    }
                ],
            },
        }
        try:
            job.cluster.apply(intruder)
            job.wait(lambda s: s["progress"].get("attempt") == 2 and s["progress"].get("resumedFromStep"), "attempt 2")
            saved_last(job, step)
        finally:
            job.cluster.kubectl("delete", "pod", "intruder", "--ignore-not-found", "--force", "--grace-period=0")
        job.wait_for_state("Complete")
    assert job.status["restartHistory"][0]["reason"] in ("Preempted", "Terminated")
    check(job, undisturbed, restarts=1, counted=0, volume=volume)
