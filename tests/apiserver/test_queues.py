"""Queues of other projects, against their own CRDs; and Kueue's real manager."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.generate import crd
from tests import tied
from tests.apiserver import gomodule
from tests.apiserver.client import Requests, wait_until_served
from tests.apiserver.hands import Hands, last_words, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.cluster.rig import fixture
from tests.cluster.rig.control_plane import ControlPlane
from tests.ports import free_port

SPACE = "queued"
ONE_GPU = {"nodes": 2, "gpusPerNode": 1}
KUEUE_API = "kueue.x-k8s.io/v1beta2"
POD_GROUPS = "scheduling.x-k8s.io_podgroups.yaml"


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane with the CRDs of all of them."""
    with fixture.control_plane("queues") as plane:
        kueue = gomodule.folder(*gomodule.KUEUE) / "config/components/crd/bases"
        plugins = gomodule.folder(*gomodule.SCHEDULER_PLUGINS) / "config/crd/bases"
        plane.apply(*gomodule.documents(*sorted(kueue.glob("*.yaml")), plugins / POD_GROUPS), crd.crd())
        for name in (crd.NAME, "workloads.kueue.x-k8s.io", "podgroups.scheduling.x-k8s.io"):
            wait_until_served(plane, name)
        for name in (SPACE, "kueue-system"):
            plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
            plane.wait_for_service_account(name)
        yield plane


@pytest.fixture(scope="module")
def hands(plane: ControlPlane) -> Hands:
    return Hands(Requests(plane), SPACE)


@pytest.fixture(scope="module")
def operator(plane: ControlPlane, hands: Hands, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    log = tmp_path_factory.mktemp("queues") / "operator.log"
    with running(OperatorProcess(plane.kubeconfig, SPACE, log)) as process:
        yield process


def a_resource(kind: str, name: str, spec: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    body = {"apiVersion": KUEUE_API, "kind": kind, "metadata": {"name": name, **fields.pop("metadata", {})}, **fields}
    return body | ({"spec": spec} if spec is not None else {})


@pytest.fixture(scope="module")
def kueue(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Kueue's manager with a quota of two GPUs; yields the file of its log.

    Its webhooks are not installed: what they would set, such as spec.suspend of a Job with a queue, the operator sets.
    """
    folder: Path = tmp_path_factory.mktemp("kueue")
    pair = plane.authority.issue("kueue", "kueue", hosts=["IP:127.0.0.1"])
    certificates = folder / "certificates"
    certificates.mkdir()
    (certificates / "tls.crt").write_bytes(pair.certificate.read_bytes())
    (certificates / "tls.key").write_bytes(pair.key.read_bytes())
    config = {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": "kueue-system",
        "health": {"healthProbeBindAddress": f"127.0.0.1:{free_port()}"},
        "metrics": {"bindAddress": f"127.0.0.1:{free_port()}"},
        "webhook": {"port": free_port(), "host": "127.0.0.1", "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "integrations": {"frameworks": ["batch/job"]},
        # An API of its own, whose certificate it wants in another fixed place.
        "featureGates": {"VisibilityOnDemand": False},
    }
    file, log = folder / "config.json", folder / "kueue.log"
    file.write_text(json.dumps(config))
    # It wants the certificate of its metrics in one fixed place, so it gets an /etc of its own.
    script = (
        'mount -t tmpfs none /etc && mkdir -p /etc/kueue/metrics && ln -s "$0" /etc/kueue/metrics/certs && exec "$@"'
    )
    manager = [str(gomodule.kueue_binary()), f"--config={file}", f"--kubeconfig={plane.kubeconfig}"]
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, str(certificates), *manager]
    with log.open("wb") as out:
        process = tied.popen(command, stdout=out, stderr=out)
    try:
        plane.apply(
            a_resource("ResourceFlavor", "gpus", {}),
            a_resource("WorkloadPriorityClass", "urgent", value=1000, description="first"),
            a_resource(
                "ClusterQueue",
                "all",
                {
                    "namespaceSelector": {},
                    "preemption": {"withinClusterQueue": "LowerPriority"},
                    "resourceGroups": [
                        {
                            "coveredResources": ["nvidia.com/gpu"],
                            "flavors": [{"name": "gpus", "resources": [{"name": "nvidia.com/gpu", "nominalQuota": 2}]}],
                        }
                    ],
                },
            ),
            a_resource("LocalQueue", "team", {"clusterQueue": "all"}, metadata={"namespace": SPACE}),
        )
        assert process.poll() is None, log.read_text()[-3000:]
        yield log
    finally:
        process.terminate()
        process.wait(timeout=60)


def queued(name: str = "team", **fields: str) -> dict[str, Any]:
    return ONE_GPU | {"queue": {"kind": "Kueue", "name": name} | fields}


def train(hands: Hands, job: str, attempt: int = 1) -> None:
    """All pods of an attempt run."""
    for pod in hands.pods(job, "train", attempt, 2):
        hands.start(pod, "")
    wait_until(f"training of {job}", lambda: hands.status(job).get("state") == "Training")


def reap(hands: Hands, job: str) -> None:
    """What kubelets would do to pods that are deleted."""
    for pod in hands.children("pods", job):
        if "deletionTimestamp" in pod["metadata"]:
            hands.delete("pods", pod["metadata"]["name"], gracePeriodSeconds=0)


# The first time, Kueue is built.
@pytest.mark.campaign  # building Kueue takes minutes
@pytest.mark.fault(19)
@pytest.mark.timeout(2400)
def test_kueue_admits_preempts_and_readmits(
    hands: Hands, operator: OperatorProcess, kueue: Path, plane: ControlPlane
) -> None:
    hands.apply("first", **queued())
    hands.run_phase("first", "prepare")
    train(hands, "first")

    # No quota is left: the second waits, and the operator does not resume it.
    hands.apply("second", **queued())
    hands.run_phase("second", "prepare")
    wait_until("queue", lambda: hands.condition("second", "Running") == ("False", "Queued"))
    assert "Kueue admits it from queue team" in hands.status("second")["message"]

    # One of a higher priority takes the first's place.
    hands.apply("urgent", **queued(priorityClass="urgent"))
    hands.run_phase("urgent", "prepare")
    wait_until("preemption", lambda: hands.status("first")["attempts"]["train"] == 2, seconds=60)
    wait_until("its pods to go", lambda: reap(hands, "first") or hands.status("urgent").get("phase") == "train")
    reap(hands, "first")
    assert hands.status("first")["restarts"] == 0
    wait_until("queue", lambda: reap(hands, "first") or hands.condition("first", "Running") == ("False", "Queued"))
    train(hands, "urgent")
    finish(hands, "urgent", 1)

    # Then both others run, one after the other, whichever Kueue takes first.
    attempts = {"first": 2, "second": 1}
    for _ in range(2):
        job = wait_until(
            "admission", lambda: next((n for n in attempts if started(hands, n, attempts[n])), ""), seconds=60
        )
        train(hands, job, attempts[job])
        finish(hands, job, attempts.pop(job))
    assert [hands.status(name)["restarts"] for name in ("first", "second", "urgent")] == [0, 0, 0]


def started(hands: Hands, job: str, attempt: int) -> bool:
    found = hands.get("jobs", f"{job}-train-{attempt}")
    return found is not None and not found["spec"]["suspend"]


def finish(hands: Hands, job: str, attempt: int) -> None:
    """Its pods train to the end, and the export follows."""
    for pod in hands.pods(job, "train", attempt, 2):
        hands.end(pod, 0, last_words(0, "train", attempt))
    hands.run_phase(job, "export", export_path="export")
    wait_until(f"end of {job}", lambda: hands.status(job).get("state") == "Complete")


@pytest.mark.apiserver
def test_a_pod_group_is_what_scheduler_plugins_want(hands: Hands, operator: OperatorProcess) -> None:
    hands.apply("grouped", **ONE_GPU, queue={"kind": "SchedulerPlugins"})
    path = f"/apis/scheduling.x-k8s.io/v1alpha1/namespaces/{SPACE}/podgroups/grouped-train"

    def group() -> dict[str, Any] | None:
        answer = hands.requests.send("GET", path)
        return answer.body if answer.accepted else None

    found = wait_until("PodGroup", group)
    # Nothing of it was dropped as unknown.
    assert found["spec"] == {"minMember": 2, "scheduleTimeoutSeconds": 300}
    hands.run_phase("grouped", "prepare")
    for pod in hands.pods("grouped", "train", 1, 2):
        assert pod["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] == found["metadata"]["name"]
        assert pod["spec"]["schedulerName"] == "scheduler-plugins-scheduler"
    hands.delete("dpojobs", "grouped")
    # The garbage collector learns of a new kind within half a minute, and of what is left to do after that.
    wait_until("PodGroup to go", lambda: group() is None, 120)


@pytest.mark.apiserver
def test_a_project_that_is_not_installed_is_told_of(hands: Hands, operator: OperatorProcess) -> None:
    hands.apply("lost", **ONE_GPU, queue={"kind": "Volcano"})
    wait_until("refusal", lambda: hands.condition("lost", "Running") == ("False", "RequestRefused"))
    assert "refused to create PodGroup lost-train: “404" in hands.status("lost")["message"]
