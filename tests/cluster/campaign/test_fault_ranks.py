"""A rank dies, hangs, is starved or cut off, at every stage of a run."""

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.rig.shell import RigError, wait_for
from tests.cluster.scenario import Job
from tests.cluster.witness import Undisturbed, check, claim_uid, witness

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(900)]

Spec = dict[str, Any]
HANG_SECONDS = 20
HANGS = {"failurePolicy": {"hangTimeoutSeconds": HANG_SECONDS}}


def running(job: Job, phase: str) -> list[dict[str, Any]]:
    """Pods of a phase whose containers run."""
    return [
        pod
        for pod in job.pods(phase)
        if any("running" in status["state"] for status in pod["status"].get("containerStatuses", ()))
    ]


def wait_for_running(job: Job, phase: str, count: int = 1, timeout: float = 120) -> list[dict[str, Any]]:
    wait_for(f"{count} running pods of {phase}", lambda: len(running(job, phase)) >= count, timeout=timeout, every=0.1)
    return running(job, phase)


def kill(job: Job, pod: dict[str, Any]) -> None:
    """SIGKILL to all of a pod's processes."""
    job.cluster.signal_pod(pod["metadata"]["name"], signal.SIGKILL, namespace=job.namespace)


def at_start(job: Job) -> None:
    """As soon as both ranks' containers run: they import, and have not met."""
    kill(job, wait_for_running(job, "train", 2)[1])


def at_rendezvous(job: Job) -> None:
    """Rank 0 waits for the other one, or they are loading the model."""
    pods = wait_for_running(job, "train", 2)
    time.sleep(4)
    kill(job, pods[0])


def in_a_step(job: Job) -> None:
    job.wait_for_step(6)
    kill(job, running(job, "train")[0])


def around_a_save(job: Job) -> None:
    """Just after one was reported, so that the next one is near; the numerics tier kills at each sub-step."""
    job.wait_for_checkpoint(8)
    time.sleep(0.7)
    kill(job, running(job, "train")[1])


@pytest.mark.fault(14)
@pytest.mark.parametrize("when", [at_start, at_rendezvous, in_a_step, around_a_save], ids=lambda f: f.__name__)
def test_rank_is_killed(job: Job, spec: Spec, undisturbed: Undisturbed, when: Callable[[Job], None]) -> None:
    with witness(job) as seen:
        job.apply(spec)
        when(job)
        volume = claim_uid(job)
        status = job.wait(lambda s: s["attempts"]["train"] == 2, "attempt 2")
        assert status["restartHistory"][0]["reason"] in ("Killed", "OOMKilled")
        assert {c["type"] for c in status["conditions"]} >= {"Restarting"}
        job.wait_for_state("Complete")
    check(job, undisturbed, restarts=1, counted=1, volume=volume)
    assert len(seen.lives()) == 4


@pytest.mark.fault(14)
@pytest.mark.parametrize("phase", ["prepare", "export"])
def test_single_pod_phase_is_killed(job: Job, spec: Spec, undisturbed: Undisturbed, phase: str) -> None:
    job.apply(spec)
    (pod,) = wait_for_running(job, phase)
    volume = claim_uid(job)
    kill(job, pod)
    job.wait(lambda s: s["attempts"][phase] == 2, "attempt 2")
    job.wait_for_state("Complete")
    check(job, undisturbed, restarts=1, counted=1, volume=volume)


@pytest.mark.fault(15)
def test_memory_runs_out(job: Job, spec: Spec) -> None:
    """Both attempts are killed for want of memory: the reason says so, and restarts end."""
    job.apply(
        spec
        | {
            "pod": {"resources": {"limits": {"memory": "150Mi"}}},
            "failurePolicy": {"maxRestarts": 1},
        }
    )
    status, failed = job.wait_for_failure(240)
    assert failed["reason"] == "MaxRestartsExceeded"
    assert "OOMKilled" in failed["message"]
    assert status["countedRestarts"] == 1
    assert [r["reason"] for r in status["restartHistory"]] == ["OOMKilled"]
    assert "pod.resources.limits.memory" in job.describe()


@pytest.mark.fault(34)
@pytest.mark.parametrize("rank", [0, 1])
def test_rank_is_stopped(job: Job, spec: Spec, undisturbed: Undisturbed, rank: int) -> None:
    with witness(job):
        job.apply(spec | HANGS)
        job.wait_for_checkpoint(4)
        volume = claim_uid(job)
        began = time.monotonic()
        job.cluster.signal_pod(job.pods("train")[rank]["metadata"]["name"], signal.SIGSTOP)
        status = job.wait(lambda s: s["attempts"]["train"] == 2, "attempt 2", timeout=60)
        decided = time.monotonic() - began
        print(f"\nrank {rank} stopped → restart decided: {decided:.1f} s, hangTimeoutSeconds {HANG_SECONDS}")
        assert decided <= HANG_SECONDS + 10
        assert status["restartHistory"][0]["reason"] == "Hang"
        job.wait_for_state("Complete")
    check(job, undisturbed, restarts=1, counted=1, volume=volume)


@pytest.mark.fault(37)
def test_rank_is_cut_off(job: Job, spec: Spec, undisturbed: Undisturbed) -> None:
    """Packets between the ranks are dropped, both ways; the operator still reaches both."""
    with witness(job):
        job.apply(spec | HANGS)
        job.wait_for_checkpoint(4)
        volume = claim_uid(job)
        first, second = job.pods("train")
        pid = job.cluster.container_pid(second["metadata"]["name"])
        node = job.cluster.node(second["spec"]["nodeName"])
        for chain, flag in (("INPUT", "-s"), ("OUTPUT", "-d")):
            node.enter_network(pid, "iptables", "-I", chain, flag, first["status"]["podIP"], "-j", "DROP")
        status = job.wait(lambda s: s["attempts"]["train"] == 2, "attempt 2", timeout=90)
        assert status["restartHistory"][0]["reason"] in ("Hang", "PeerLost")
        job.wait_for_state("Complete")
    check(job, undisturbed, restarts=1, counted=1, volume=volume)


@pytest.mark.fault(40)
def test_crash_loop_ends(job: Job, spec: Spec) -> None:
    """Each attempt is killed before its first step: after three restarts the job stops, whatever maxRestarts allows."""
    job.apply(spec | {"failurePolicy": {"maxRestarts": 100, "backoffSeconds": 1}})
    deadline = time.monotonic() + 300
    while (status := job.status).get("state") != "Failed":
        assert time.monotonic() < deadline, job.describe()
        for pod in running(job, "train"):
            if "deletionTimestamp" not in pod["metadata"]:
                try:
                    kill(job, pod)
                except (RigError, ProcessLookupError):
                    continue  # it ended by itself meanwhile
        time.sleep(0.2)
    (failed,) = (c for c in status["conditions"] if c["type"] == "Failed")
    assert failed["reason"] == "NoProgress"
    assert status["countedRestarts"] == 3
