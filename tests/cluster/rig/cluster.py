"""A whole cluster: boot it, use it, break it, remove it."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.rig import configs, images, manifests, packages, volumes
from tests.cluster.rig.addresses import Addresses
from tests.cluster.rig.binaries import binary
from tests.cluster.rig.control_plane import ControlPlane, Endpoints
from tests.cluster.rig.layout import Layout
from tests.cluster.rig.namespaces import Namespace, connect_machine, connect_node, create_bridge, set_port
from tests.cluster.rig.node import Node
from tests.cluster.rig.remains import claim_number, group_of, remove
from tests.cluster.rig.shell import RigError, run, say, step, wait_for
from tests.cluster.rig.usage import Use

NODES_READY_SECONDS = 120.0
PROMETHEUS_PORT = 9090
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?")


@dataclass(frozen=True)
class Shape:
    """What a cluster consists of."""

    # The number of GPUs of each node; a node with none is a CPU node.
    gpus: tuple[int, ...] = (0, 1, 1)
    images: bool = True
    audit: bool = False
    volumes: int = 12


@dataclass(frozen=True)
class Cluster:
    """A cluster, running or about to be; all its state is in files, so any process can open it by name."""

    name: str
    number: int
    shape: Shape = field(default_factory=Shape)

    @classmethod
    def open(cls, name: str) -> Cluster:
        """A cluster that was booted before, by this process or another."""
        try:
            said = json.loads(Layout.of(name).description.read_text())
        except FileNotFoundError:
            raise RigError(f"there is no cluster {name}; `python -m tests.cluster.rig up` makes one") from None
        said["shape"]["gpus"] = tuple(said["shape"]["gpus"])
        return cls(name, said["number"], Shape(**said["shape"]))

    @classmethod
    def boot(cls, use: Use, shape: Shape | None = None) -> Cluster:
        """Boot a cluster, after removing what an earlier one of this name left behind; use.leave_running() keeps it."""
        name = use.name
        if not NAME.fullmatch(name):
            raise RigError(f"{name!r} cannot be a cluster's name: lower-case letters, digits and dashes, 20 at most")
        use.begin()
        packages.ensure()
        shape = shape or Shape()
        # Everything slow and missing is made before anything of the cluster exists.
        loaded = images.ensure(images.RECIPES if shape.images else ())
        cluster = cls(name, claim_number(Layout.of(name)), shape)
        with step(f"booting cluster {name}"):
            cluster.start(loaded)
        return cluster

    @property
    def layout(self) -> Layout:
        return Layout.of(self.name)

    @property
    def addresses(self) -> Addresses:
        return Addresses(self.number)

    @property
    def kubeconfig(self) -> Path:
        return self.layout.kubeconfig

    @property
    def nodes(self) -> list[Node]:
        group = group_of(self.layout)
        plane = self.control_plane
        return [
            Node(ordinal, gpus, plane, self.addresses, group.child("daemons"), group.child(f"n{ordinal}"))
            for ordinal, gpus in enumerate(self.shape.gpus, start=1)
        ]

    def node(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise RigError(f"cluster {self.name} has no node {name}")

    @property
    def namespace(self) -> Namespace:
        """The control plane's namespace, from where pods can be reached."""
        found = [process for process in ControlPlane.processes_of(self.layout) if process.name == "namespace"]
        if not found:
            raise RigError(f"cluster {self.name} is not running")
        return Namespace(found[0])

    @property
    def control_plane(self) -> ControlPlane:
        return ControlPlane(
            self.layout,
            Endpoints.in_namespace(self.addresses.control_plane),
            enter=self.namespace.enter,
            group=group_of(self.layout).child("daemons").tracking,
            audit=self.shape.audit,
        )

    # Boot

    def start(self, loaded: Sequence[images.Image]) -> None:
        layout, daemons = self.layout, group_of(self.layout).child("daemons")
        daemons.make()
        namespace = Namespace.create(
            "namespace", records=layout.processes, log=layout.logs / "namespace.log", group=daemons.tracking
        )
        create_bridge(namespace, self.addresses)
        connect_machine(namespace, self.addresses)
        nodes = self.nodes
        with ThreadPoolExecutor(len(nodes)) as workers:
            prepared = [workers.submit(self.prepare_node, node, loaded) for node in nodes]
            plane = self.control_plane
            plane.start()
            plane.create_client("kube-proxy", "system:kube-proxy")
            plane.apply(*manifests.base(self.addresses.control_plane))
            for future in prepared:
                future.result()
            for future in [workers.submit(self.start_node, node) for node in nodes]:
                future.result()
            self.start_dns()
            self.start_prometheus()
            volumes.refill(plane, self.shape.volumes)
        wait_for("the nodes", self.nodes_ready, timeout=NODES_READY_SECONDS)
        for node in nodes:
            if node.gpus:
                node.advertise_gpus()
        plane.wait_for_service_account()
        shape = {"gpus": self.shape.gpus, "images": self.shape.images}
        shape |= {"audit": self.shape.audit, "volumes": self.shape.volumes}
        layout.description.write_text(json.dumps({"number": self.number, "shape": shape}))

    def prepare_node(self, node: Node, loaded: Sequence[images.Image]) -> None:
        """What needs no API: namespaces, wires, containerd with its images."""
        namespace = node.create_namespace()
        ordinals = range(1, len(self.shape.gpus) + 1)
        connect_node(self.namespace, namespace, node.ordinal, ordinals, self.addresses)
        node.pods.make()
        node.start_containerd()
        for image in loaded:
            images.load(image, node)

    def start_node(self, node: Node) -> None:
        node.start_kubelet()
        node.start_proxy()

    def start_dns(self) -> None:
        plane = self.control_plane
        kubeconfig = plane.create_client("coredns", manifests.DNS_USER)
        settings = self.layout.root / "Corefile"
        settings.write_text(configs.corefile(address=self.addresses.control_plane, kubeconfig=kubeconfig))
        plane.start_daemon("coredns", "-conf", str(settings))

    def start_prometheus(self) -> None:
        plane = self.control_plane
        client = plane.authority.issue("prometheus", manifests.PROMETHEUS_USER)
        self.rules.mkdir(exist_ok=True)
        settings = self.layout.root / "prometheus.json"
        settings.write_text(
            json.dumps(
                configs.prometheus(
                    server=plane.endpoints.server,
                    authority=plane.authority.own.certificate,
                    certificate=client.certificate,
                    key=client.key,
                    rules=[str(self.rules / "*.yaml")],
                )
            )
        )
        plane.start_daemon(
            "prometheus",
            f"--config.file={settings}",
            f"--storage.tsdb.path={self.layout.root / 'prometheus'}",
            f"--web.listen-address=0.0.0.0:{PROMETHEUS_PORT}",
            "--web.enable-lifecycle",
            "--log.level=warn",
        )

    def nodes_ready(self) -> bool:
        listed = json.loads(self.kubectl("get", "nodes", "-o", "json"))["items"]
        ready = [
            node["metadata"]["name"]
            for node in listed
            for condition in node["status"].get("conditions", ())
            if condition["type"] == "Ready" and condition["status"] == "True"
        ]
        return len(ready) == len(self.shape.gpus)

    # Use

    def kubectl(self, *words: str | Path, stdin: str | None = None, timeout: float | None = 120.0) -> str:
        """Run kubectl as the cluster's administrator and return its output."""
        return self.control_plane.kubectl(*words, stdin=stdin, timeout=timeout)

    def apply(self, *objects: dict[str, Any]) -> str:
        return self.control_plane.apply(*objects)

    def get(self, *words: str) -> dict[str, Any]:
        """`kubectl get … -o json`, parsed."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *words, "-o", "json"))
        return found

    def helm(self, *words: str | Path, timeout: float | None = 300.0) -> str:
        return run([binary("helm"), f"--kubeconfig={self.kubeconfig}", *words], timeout=timeout)

    def logs(self, daemon: str) -> str:
        """What a daemon has written: "kube-apiserver", "n1-kubelet", "prometheus" and so on."""
        return self.control_plane.log(daemon)

    def node_exec(self, node: str, *words: str | Path, timeout: float | None = 60.0) -> str:
        """Run a command of this machine inside a node's network and mounts."""
        return self.node(node).namespace.run(*words, timeout=timeout)

    def load_images(self) -> None:
        """Build what has changed of the project's images, and give it to every node; running pods keep the old."""
        loaded = images.ensure()
        nodes = self.nodes
        with ThreadPoolExecutor(len(nodes)) as workers:
            for done in [workers.submit(images.load, image, node) for image in loaded for node in nodes]:
                done.result()

    def refill_volumes(self, count: int | None = None, size: str = volumes.SIZE) -> None:
        """Replace released volumes, so that this many can be claimed again."""
        volumes.refill(self.control_plane, count or self.shape.volumes, size=size)

    @property
    def rules(self) -> Path:
        """A folder for Prometheus rule files (*.yaml); reload_prometheus() makes them take effect."""
        return self.layout.root / "rules"

    @property
    def prometheus_url(self) -> str:
        return f"http://{self.addresses.control_plane}:{PROMETHEUS_PORT}"

    def reload_prometheus(self) -> None:
        with urllib.request.urlopen(urllib.request.Request(f"{self.prometheus_url}/-/reload", method="POST")):
            pass

    def prometheus_query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query: series with "metric" (labels) and "value" (time and number)."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.prometheus_url}/api/v1/query?{query}", timeout=10) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result

    # Break

    def cut_link(self, node: str) -> None:
        """Pull the node's cable; what runs on it goes on running, unreachable."""
        set_port(self.namespace, self.node(node).ordinal, up=False)

    def restore_link(self, node: str) -> None:
        set_port(self.namespace, self.node(node).ordinal, up=True)

    def signal_pod(
        self,
        pod: str,
        number: signal.Signals = signal.SIGKILL,
        *,
        namespace: str = "default",
        container: str | None = None,
        whole: bool = True,
    ) -> None:
        """Signal the processes of a pod's container from outside: all of them, or with whole=False only the first."""
        node, container_id = self.container(pod, namespace=namespace, container=container)
        node.signal_container(container_id, number, whole=whole)

    def container_pid(self, pod: str, *, namespace: str = "default", container: str | None = None) -> int:
        """The process id, on this machine, of the first process of a pod's container."""
        node, container_id = self.container(pod, namespace=namespace, container=container)
        return node.container_pid(container_id)

    def container(self, pod: str, *, namespace: str, container: str | None) -> tuple[Node, str]:
        shown = self.get("pod", pod, "--namespace", namespace)
        for status in shown["status"].get("containerStatuses", ()):
            if container in (None, status["name"]) and "running" in status["state"]:
                return self.node(shown["spec"]["nodeName"]), status["containerID"].removeprefix("containerd://")
        raise RigError(f"pod {namespace}/{pod} has no running container {container or ''}")

    # Look and remove

    def report(self) -> str:
        """One line for each recorded process, dead ones included."""
        lines = [f"cluster {self.name} (number {self.number}) in {self.layout.root}"]
        for process in self.control_plane.processes():
            lines.append(f"  {process.name:24} {process.pid:>8}  {'running' if process.alive else 'dead'}")
        return "\n".join(lines)

    @property
    def healthy(self) -> bool:
        """Whether every recorded process is still there."""
        return all(process.alive for process in ControlPlane.processes_of(self.layout))

    def destroy(self) -> None:
        begun = time.monotonic()
        remove(self.name)
        say(f"cluster {self.name} is gone after {time.monotonic() - begun:.1f}s")
