"""The rig itself: what every other cluster test takes for granted."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tied
from tests.cluster.rig import Cluster, cluster, control_plane
from tests.cluster.rig.addresses import Addresses
from tests.cluster.rig.cluster import Shape
from tests.cluster.rig.images import TEST_IMAGE
from tests.cluster.rig.layout import CHECKOUT, Layout
from tests.cluster.rig.processes import recorded
from tests.cluster.rig.remains import group_of
from tests.cluster.rig.shell import RigError, wait_for
from tests.cluster.rig.usage import in_use

pytestmark = pytest.mark.cluster

GPU: dict[str, Any] = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
SERVE = ["python3", "-m", "http.server", "8000"]


@pytest.fixture(scope="module")
def rig() -> Iterator[Cluster]:
    """A cluster of its own with plain images: these tests break things, and need nothing of the project's."""
    with cluster("rig-test", shape=Shape(images=False, volumes=2)) as booted:
        yield booted


def pod(name: str, command: list[str], *, node: str | None = None, **container: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": 1,
        "restartPolicy": "Always",
        "containers": [{"name": "main", "image": TEST_IMAGE, "command": command, **container}],
    }
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    labels = {"app": name, "app.kubernetes.io/part-of": "dpo-operator", "dpo-operator.dev/job": "demo"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


def phase(rig: Cluster, name: str) -> str:
    return str(rig.get("pod", name)["status"]["phase"])


def in_pod(rig: Cluster, name: str, code: str) -> str:
    """What a few lines of Python print in a running pod."""
    return rig.kubectl("exec", name, "--", "python3", "-c", code).strip()


def eventually(what: str, probe: Callable[[], object], timeout: float = 60.0) -> None:
    wait_for(what, lambda: probe() or None, timeout=timeout, every=0.5)


def node_condition(rig: Cluster, node: str) -> str:
    conditions = rig.get("node", node)["status"]["conditions"]
    return next(str(each["status"]) for each in conditions if each["type"] == "Ready")


@pytest.fixture(scope="module")
def servers(rig: Cluster) -> None:
    """A web server on each node, behind a Service for each."""
    for node in ("n1", "n2", "n3"):
        service = {"selector": {"app": f"web-{node}"}, "ports": [{"port": 80, "targetPort": 8000}]}
        # Not the pod's own name: inside the pod that is its own address.
        metadata = {"name": f"service-{node}"}
        ports = [{"name": "metrics", "containerPort": 8000}]
        probe = {"tcpSocket": {"port": 8000}, "periodSeconds": 1}
        rig.apply(
            pod(f"web-{node}", SERVE, node=node, ports=ports, readinessProbe=probe),
            {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
        )
    rig.kubectl("wait", "pod", "--all", "--for=condition=Ready", "--timeout=60s")


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("source", ["n1", "n2", "n3"])
def test_services_on_other_nodes_are_reached_by_name(rig: Cluster, source: str) -> None:
    fetch = (
        "import urllib.request as r; print(*(r.urlopen(f'http://service-n{i}', timeout=9).status for i in (1, 2, 3)))"
    )
    eventually("three answers", lambda: in_pod(rig, f"web-{source}", fetch) == "200 200 200", timeout=20)


@pytest.mark.usefixtures("servers")
def test_there_is_no_way_out(rig: Cluster) -> None:
    """Neither names nor addresses outside of the cluster, and not even the machine itself, and that is said at once."""
    outside = ["192.0.2.1", "198.51.100.1", rig.addresses.host_side]
    code = f"""
import socket
for address in {outside!r}:
    try:
        socket.create_connection((address, 443), timeout=5)
    except OSError as error:
        print(error.errno)
try:
    socket.gethostbyname("example.com")
except OSError as error:
    print(error.errno)
"""
    assert in_pod(rig, "web-n2", code).split() == ["101", "101", "101", "-2"]


@pytest.mark.usefixtures("servers")
def test_prometheus_finds_pods_with_the_labels_of_their_job(rig: Cluster) -> None:
    query = 'up{dpojob="demo",namespace="default",pod="web-n3"}'
    eventually("prometheus to scrape", lambda: rig.prometheus_query(query))


def test_the_scheduler_gives_out_each_gpu_once(rig: Cluster) -> None:
    rig.apply(*(pod(f"gpu-{index}", SERVE, **GPU) for index in range(3)))
    names = [f"gpu-{index}" for index in range(3)]
    eventually(
        "two pods to run", lambda: sorted(phase(rig, name) for name in names) == ["Pending", "Running", "Running"]
    )
    placed = {rig.get("pod", name)["spec"].get("nodeName") for name in names}
    assert placed == {None, "n2", "n3"}
    rig.kubectl("delete", "pod", *names, "--wait")


def test_gpus_survive_a_restart_of_the_kubelet(rig: Cluster) -> None:
    before = rig.get("lease", "n2", "-n", "kube-node-lease")["spec"]["renewTime"]
    rig.node("n2").restart_kubelet()
    eventually("the kubelet", lambda: rig.get("lease", "n2", "-n", "kube-node-lease")["spec"]["renewTime"] > before)
    assert rig.get("node", "n2")["status"]["allocatable"]["nvidia.com/gpu"] == "1"


def test_volumes_are_writable_by_ordinary_users_and_shared(rig: Cluster) -> None:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "claim"}, "spec": spec}
    write = "import socket; open(f'/data/{socket.gethostname()}', 'w').write('x'); import time; time.sleep(1000)"
    pods = []
    for node in ("n1", "n3"):
        mount: dict[str, Any] = {
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            "securityContext": {"runAsUser": 65532},
        }
        each = pod(f"writer-{node}", ["python3", "-c", write], node=node, **mount)
        each["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "claim"}}]
        pods.append(each)
    rig.apply(claim, *pods)
    rig.kubectl("wait", "pod", "writer-n1", "writer-n3", "--for=condition=Ready", "--timeout=60s")
    both = "import os, time; time.sleep(1); print(*sorted(os.listdir('/data')))"
    eventually("both files", lambda: in_pod(rig, "writer-n1", both) == "writer-n1 writer-n3")
    rig.kubectl("delete", "pod", "writer-n1", "writer-n3", "--wait")
    rig.kubectl("delete", "persistentvolumeclaim", "claim", "--wait")
    eventually("the release", lambda: "Released" in rig.kubectl("get", "pv"))
    rig.refill_volumes()
    assert rig.kubectl("get", "pv").count("Available") == 2


@pytest.mark.usefixtures("servers")
def test_a_container_is_killed_and_frozen_from_outside(rig: Cluster) -> None:
    first = rig.container_pid("web-n3")
    rig.signal_pod("web-n3", signal.SIGKILL)
    eventually("the restart", lambda: rig.get("pod", "web-n3")["status"]["containerStatuses"][0]["restartCount"] == 1)
    eventually("the new container", lambda: rig.container_pid("web-n3") != first)
    second = rig.container_pid("web-n3")
    rig.signal_pod("web-n3", signal.SIGSTOP)
    eventually("the stop", lambda: "State:\tT" in Path(f"/proc/{second}/status").read_text())
    rig.signal_pod("web-n3", signal.SIGCONT)


def test_a_node_is_lost_and_found(rig: Cluster) -> None:
    rig.cut_link("n3")
    eventually("the node to be missed", lambda: node_condition(rig, "n3") == "Unknown", timeout=90)
    rig.restore_link("n3")
    eventually("the node's return", lambda: node_condition(rig, "n3") == "True")


def test_what_a_kill_left_behind_does_not_hinder_the_next_start() -> None:
    """Every process of a cluster is killed, records and folders stay; it boots again, and then leaves nothing."""
    shape = Shape(gpus=(0,), images=False, volumes=0)
    layout = Layout.of("rig-crash")
    with in_use("rig-crash") as use:
        first = Cluster.boot(use, shape)
        first.apply(pod("web", SERVE))
        first.kubectl("wait", "pod", "web", "--for=condition=Ready", "--timeout=60s")
        group_of(layout).kill()
        assert not first.healthy
        second = Cluster.boot(use, shape)
        assert second.healthy
        begun = time.monotonic()
        second.destroy()
    assert time.monotonic() - begun < 15
    assert not layout.root.exists()
    assert not Path("/sys/class/net", second.addresses.host_interface).exists()
    assert group_of(layout).remains == []
    assert str(layout.root) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_boot_that_is_ended_half_way_leaves_nothing(number: signal.Signals) -> None:
    """Its containerd and its interface are there already, the nodes are not ready yet."""
    layout = Layout.of("rig-half")
    words = ["up", "--name", layout.name, "--gpus", "0", "--no-images", "--fresh"]
    # A shell without job control starts its children with SIGINT ignored.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; from tests.cluster.rig.__main__ import app; app({words!r})"
    process = tied.popen([sys.executable, "-c", code], cwd=CHECKOUT)

    def half_way() -> bool:
        names = {each.name for each in recorded(layout.processes) if each.alive}
        return {"etcd", "n1-containerd"} <= names

    eventually("half a cluster", half_way)
    number_of_cluster = int(layout.number.read_text())
    started = recorded(layout.processes)
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    eventually("the removal", lambda: not layout.root.exists())
    assert not any(each.alive for each in started)
    assert group_of(layout).remains == []
    assert not Path("/sys/class/net", Addresses(number_of_cluster).host_interface).exists()
    assert str(layout.root) not in Path("/proc/self/mountinfo").read_text()


def test_an_api_server_alone_needs_no_namespace() -> None:
    with control_plane("rig-api") as plane:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}}
        container = {"name": "c", "image": "i"}
        plane.wait_for_service_account()
        plane.apply({**job, "spec": {"template": {"spec": {"containers": [container], "restartPolicy": "Never"}}}})
        eventually("the Job's pod", lambda: "pod/" in plane.kubectl("get", "pods", "-o", "name"))
    with pytest.raises(RigError):
        plane.kubectl("get", "namespaces", timeout=5)
