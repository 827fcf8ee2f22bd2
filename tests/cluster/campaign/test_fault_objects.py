"""What a job needs is missing, goes away or is deleted; the operator is upgraded or removed under it."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import scenario
from tests.cluster.rig.cluster import Cluster
from tests.cluster.rig.manifests import STORAGE_CLASS
from tests.cluster.rig.shell import wait_for
from tests.cluster.scenario import RELEASE, SYSTEM_NAMESPACE, Job, training_records
from tests.cluster.witness import Undisturbed, check, check_losses, children, claim_uid, witness

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(900)]

Spec = dict[str, Any]
SOON = 30.0


def wait_for_reason(job: Job, reason: str, timeout: float = SOON) -> str:
    """Wait until Running=False has this reason; returns its message. The bound for every start-up problem is 30 s."""
    deadline = time.monotonic() + timeout
    while True:
        found = [c for c in job.status.get("conditions", ()) if c["type"] == "Running" and c["reason"] == reason]
        if found:
            return str(found[0]["message"])
        assert time.monotonic() < deadline, f"no {reason}\n{job.describe()}"
        time.sleep(0.3)


def events(job: Job, reason: str) -> int:
    """How often something was told: a problem that lasts is told once, not at every look."""
    found = job.cluster.get("events", "--namespace", job.namespace)["items"]
    return sum(e["involvedObject"]["name"] == job.name and e["reason"] == reason for e in found)


@pytest.mark.fault(20)
def test_image_can_not_be_pulled(job: Job, spec: Spec, undisturbed: Undisturbed) -> None:
    """Said within 30 s; once the nodes have the image, the job goes on and nothing was counted."""
    late = "dpo-trainer:late"
    job.apply(spec | {"pod": {"image": late, "imagePullPolicy": "IfNotPresent"}})
    assert late in wait_for_reason(job, "ImagePullFailed", SOON + 15)
    assert events(job, "ImagePullFailed") == 1
    for node in job.cluster.nodes:
        node.ctr("images", "tag", "docker.io/library/dpo-trainer:dev", f"docker.io/library/{late}")
    # The kubelet waits longer after each failure, up to 5 min; nothing of ours decides when it looks again.
    job.wait_for_state("Complete", timeout=600)
    volume = claim_uid(job)
    check(job, undisturbed, restarts=0, counted=0, volume=volume)


@pytest.mark.fault(21)
def test_no_node_fits(job: Job, spec: Spec, undisturbed: Undisturbed) -> None:
    """The scheduler's own words; healed when a node gets the label."""
    job.apply(spec | {"pod": {"nodeSelector": {"pool": "late"}}})
    job.wait(lambda s: s.get("phase") == "train", "training")
    assert "node" in wait_for_reason(job, "Unschedulable")
    assert "didn't match" in job.status["message"]
    job.cluster.kubectl("label", "node", "n2", "n3", "pool=late")
    try:
        job.wait_for_state("Complete")
    finally:
        job.cluster.kubectl("label", "node", "n2", "n3", "pool-")
    check(job, undisturbed, restarts=0, counted=0, volume=claim_uid(job))


@pytest.mark.fault(22)
def test_secret_is_missing(job: Job, spec: Spec, undisturbed: Undisturbed) -> None:
    token = {"tokenSecretRef": {"name": "late-token", "key": "token"}}
    job.apply(spec | {"model": spec["model"] | token})
    assert "late-token" in wait_for_reason(job, "SecretNotFound")
    job.cluster.kubectl("create", "secret", "generic", "late-token", "--from-literal=token=hf_x")
    try:
        job.wait_for_state("Complete", timeout=300)
    finally:
        job.cluster.kubectl("delete", "secret", "late-token")
    check(job, undisturbed, restarts=0, counted=0, volume=claim_uid(job))


@pytest.mark.fault(25)
@pytest.mark.parametrize("kind", ["pod", "job", "service", "networkpolicy"])
def test_outsider_deletes(job: Job, spec: Spec, undisturbed: Undisturbed, kind: str) -> None:
    """Pods and Jobs cost an attempt that does not count; what the pods only need to meet is made anew."""
    with witness(job):
        job.apply(spec)
        job.wait_for_checkpoint(4)
        volume = claim_uid(job)
        selector = "dpo-operator.dev/phase=train" if kind in ("pod", "job") else "app.kubernetes.io/name=dpojob"
        job.cluster.kubectl("delete", kind, "--selector", f"dpo-operator.dev/job={job.name},{selector}", "--wait=false")
        job.wait_for_state("Complete")
    restarts = 1 if kind in ("pod", "job") else 0
    check(job, undisturbed, restarts=restarts, counted=0, volume=volume)


@pytest.mark.fault(25)
def test_outsider_deletes_the_claim(job: Job, spec: Spec) -> None:
    """Kubernetes keeps a claim while pods use it. Once it's gone the job fails, and never starts over silently."""
    job.apply(spec)
    job.wait_for_checkpoint(4)
    job.cluster.kubectl("delete", "pvc", f"{job.name}-work", "--wait=false")
    job.cluster.kubectl("delete", "job", "--selector", f"dpo-operator.dev/job={job.name}", "--wait=false")
    _, failed = job.wait_for_failure()
    assert failed["reason"] == "VolumeLost"


@pytest.mark.fault(33)
def test_two_jobs_on_one_claim(installed: Cluster, spec: Spec, undisturbed: Undisturbed) -> None:
    """One after the other for the GPUs, side by side on the volume; neither sees the other's files."""
    claim: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "common", "namespace": "default"},
    }
    claim["spec"] = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": STORAGE_CLASS,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    installed.apply(claim)
    jobs = [Job(installed, "common-a"), Job(installed, "common-b")]
    volume = {"claimName": "common", "size": "1Gi", "retention": "Retain"}
    try:
        for job in jobs:
            job.apply(spec | {"checkpoint": {"everySteps": 4, "volume": volume}})
        for job in jobs:
            job.wait_for_state("Complete", timeout=400)
        root = installed.get("pv", installed.get("pvc", "common")["spec"]["volumeName"])["spec"]["hostPath"]["path"]
        for job in jobs:
            check_losses(training_records(Path(root) / job.uid / "metrics.jsonl"), undisturbed.records)
            assert job.status["restarts"] == 0
    finally:
        for job in jobs:
            job.delete()
        installed.kubectl("delete", "pvc", "common", "--wait=false")
        installed.refill_volumes()


@pytest.mark.fault(12)
def test_operator_is_upgraded(job: Job, spec: Spec, undisturbed: Undisturbed) -> None:
    """helm upgrade and back, with other settings: no trainer pod is touched."""
    with witness(job) as seen:
        job.apply(spec)
        job.wait_for_step(4)
        volume = claim_uid(job)
        chart = scenario.REPOSITORY / "charts" / "dpo-operator"
        job.cluster.helm(
            "upgrade", RELEASE, chart, "--namespace", SYSTEM_NAMESPACE, "--reuse-values",
            "--set", "operator.progressSeconds=2", "--wait", "--timeout", "90s",
        )  # fmt: skip
        job.cluster.helm("rollback", RELEASE, "--namespace", SYSTEM_NAMESPACE, "--wait", "--timeout", "90s")
        job.wait_for_state("Complete")
    check(job, undisturbed, restarts=0, counted=0, volume=volume)
    assert len(seen.lives()) == 2


def _leader(cluster: Cluster) -> str:
    """Pod that holds the operator's Lease."""
    return str(cluster.get("lease", RELEASE, "--namespace", SYSTEM_NAMESPACE)["spec"].get("holderIdentity"))


@pytest.mark.fault(11)
def test_leader_is_lost(job: Job, spec: Spec, undisturbed: Undisturbed) -> None:
    """Two replicas, and the one that leads is killed in mid-run: the other takes over, and no trainer pod is touched."""
    helm = ("upgrade", RELEASE, scenario.REPOSITORY / "charts" / "dpo-operator", "--namespace", SYSTEM_NAMESPACE)
    wait = ("--reuse-values", "--wait", "--timeout", "90s")
    try:
        with witness(job) as seen:
            job.cluster.helm(*helm, *wait, "--set", "operator.replicas=2")
            job.apply(spec)
            job.wait_for_step(4)
            volume, before = claim_uid(job), _leader(job.cluster)
            job.cluster.kubectl("delete", "pod", before, "--namespace", SYSTEM_NAMESPACE, "--grace-period=0", "--force")
            began = time.monotonic()
            wait_for("another leader", lambda: _leader(job.cluster) not in ("", "None", before), timeout=40)
            print(f"\nleader killed → another leads: {time.monotonic() - began:.1f} s")
            job.wait_for_state("Complete")
        check(job, undisturbed, restarts=0, counted=0, volume=volume)
        assert len(seen.lives()) == 2
    finally:
        job.cluster.helm(*helm, *wait, "--set", "operator.replicas=1")


@pytest.mark.fault(13)
def test_chart_is_uninstalled(job: Job, spec: Spec) -> None:
    """The job and its CRD stay, its pods run on; without an operator it can be deleted, and leaves nothing."""
    job.apply(spec)
    job.wait_for_step(4)
    try:
        job.cluster.helm("uninstall", RELEASE, "--namespace", SYSTEM_NAMESPACE, "--wait", "--timeout", "60s")
        assert job.get()["metadata"].get("finalizers") is None
        assert all(pod["status"]["phase"] in ("Running", "Succeeded") for pod in job.pods("train"))
        job.cluster.kubectl("delete", "dpojob", job.name, timeout=30)
        wait_for("children to go", lambda: not children(job) and not job.pods("train"), timeout=60)
    finally:
        scenario.install(job.cluster)


@pytest.mark.fault(43)
@pytest.mark.parametrize("cascade", ["background", "foreground", "orphan"])
def test_job_is_deleted(job: Job, spec: Spec, cascade: str) -> None:
    """Gone within 60 s with everything but a retained claim; orphaned children are left, as was asked for."""
    retain = {"everySteps": 4, "volume": {"size": "1Gi", "retention": "Retain"}}
    job.apply(spec | {"checkpoint": retain})
    job.wait_for_checkpoint(4)
    claim = f"{job.name}-work"
    began = time.monotonic()
    job.cluster.kubectl("delete", "dpojob", job.name, f"--cascade={cascade}", timeout=60)
    try:
        if cascade == "orphan":
            time.sleep(5)
            assert any(child.startswith("job") for child in children(job))
        else:
            wait_for(
                "children to go",
                lambda: [c for c in children(job) if "persistentvolumeclaim" not in c] == [],
                timeout=60,
            )
            wait_for("pods to go", lambda: not job.pods("train"), timeout=60)
            print(f"\ndeleted ({cascade}) → all gone: {time.monotonic() - began:.1f} s")
            assert time.monotonic() - began <= 60
        assert job.cluster.get("pvc", claim)["status"]["phase"] == "Bound"
    finally:
        for kind in ("job", "service", "configmap", "pdb", "networkpolicy", "pod"):
            job.cluster.kubectl("delete", kind, "--selector", f"dpo-operator.dev/job={job.name}", "--wait=false")
        job.cluster.kubectl("delete", "pvc", claim, "--wait=false")


@pytest.mark.fault(46)
def test_namespace_is_deleted(installed: Cluster, spec: Spec) -> None:
    """It goes in time, with a job in mid-run; the data on the volume are still there."""
    installed.kubectl("create", "namespace", "short-lived")
    scenario.provide_inputs(
        installed, {name: _folder(installed, name) for name in ("stories260K", "hh")}, namespace="short-lived"
    )
    job = Job(installed, "tenant", "short-lived")
    retain = {"everySteps": 4, "volume": {"size": "1Gi", "retention": "Retain"}}
    job.apply(spec | {"checkpoint": retain})
    job.wait_for_checkpoint(4)
    work = job.work_folder()
    began = time.monotonic()
    installed.kubectl("delete", "namespace", "short-lived", "--timeout=120s", timeout=150)
    print(f"\nnamespace deleted → gone: {time.monotonic() - began:.1f} s")
    assert list((work / "checkpoints").glob("step-*/manifest.json"))
    installed.kubectl("delete", "pv", "inputs-short-lived", "--ignore-not-found", "--wait=false")
    other = Job(installed, "after-namespace")
    other.apply(spec)
    try:
        other.wait(lambda s: s.get("phase") == "prepare", "the operator at work", timeout=20)
    finally:
        other.delete()
        installed.refill_volumes()


def _folder(installed: Cluster, name: str) -> Path:
    return installed.layout.volumes / "inputs-default" / name
