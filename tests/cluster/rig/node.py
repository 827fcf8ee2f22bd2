"""One node: containerd, kubelet and kube-proxy in namespaces and a control group of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.rig import configs
from tests.cluster.rig.addresses import Addresses
from tests.cluster.rig.binaries import binary
from tests.cluster.rig.cgroups import Group
from tests.cluster.rig.control_plane import ControlPlane
from tests.cluster.rig.namespaces import Namespace
from tests.cluster.rig.processes import Process, recorded, spawn, stop
from tests.cluster.rig.shell import RigError, run, wait_for

KUBELET_ROOT = Path("/var/lib/kubelet")
NODE_TYPE_LABEL = "dpo-operator.dev/node-type"
GPU_RESOURCE = "nvidia.com/gpu"


@dataclass(frozen=True)
class Node:
    """A node of a cluster; its files are in a folder named after it."""

    ordinal: int
    gpus: int
    plane: ControlPlane
    addresses: Addresses
    daemons: Group
    pods: Group

    @property
    def name(self) -> str:
        return f"n{self.ordinal}"

    @property
    def folder(self) -> Path:
        return self.plane.layout.node(self.name)

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def snapshots(self) -> Path:
        """Where containerd keeps unpacked image layers."""
        return self.folder / "containerd" / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"

    @property
    def namespace(self) -> Namespace:
        return Namespace(self.process("namespace"))

    def process(self, daemon: str) -> Process:
        """The record of one of the node's processes: namespace, containerd, kubelet or kube-proxy."""
        name = f"{self.name}-{daemon}"
        found = [each for each in recorded(self.plane.layout.processes) if each.name == name]
        if not found:
            raise RigError(f"{name} was never started")
        return found[0]

    def create_namespace(self) -> Namespace:
        """Make the node's namespaces, in which its kubelet and containerd seem to be alone on the machine.

        Some of their paths cannot be configured (device plugins' sockets, shims' sockets), so they get folders of
        their own mounted there; these mounts, like all that the kubelet makes, end with the namespace.
        """
        layout = self.plane.layout
        name = f"{self.name}-namespace"
        log = layout.logs / f"{name}.log"
        namespace = Namespace.create(name, records=layout.processes, log=log, group=self.daemons.tracking)
        private = {KUBELET_ROOT: self.folder / "kubelet", Path("/run/containerd"): self.folder / "run"}
        for usual, own in private.items():
            usual.mkdir(parents=True, exist_ok=True)
            own.mkdir(parents=True)
            namespace.run("mount", "--bind", own, usual)
        return namespace

    def start_daemon(self, daemon: str, *words: str | Path) -> Process:
        layout = self.plane.layout
        name = f"{self.name}-{daemon}"
        return spawn(
            name,
            [*self.namespace.enter, *words],
            records=layout.processes,
            log=layout.logs / f"{name}.log",
            group=self.daemons.tracking,
        )

    def start_containerd(self) -> None:
        settings = self.folder / "containerd.toml"
        cni = self.folder / "cni"
        cni.mkdir(parents=True, exist_ok=True)
        network = configs.cni(pods=self.addresses.node_pods(self.ordinal), data=self.folder / "ipam")
        (cni / "10-rig.conflist").write_text(json.dumps(network))
        folder = self.folder
        settings.write_text(
            configs.containerd(root=folder / "containerd", state=folder / "state", socket=self.socket, cni=cni)
        )
        self.start_daemon("containerd", "containerd", "--config", settings)
        wait_for(f"containerd of {self.name}", lambda: self.ctr("version"), timeout=60.0, every=0.1)

    def start_kubelet(self) -> Process:
        kubeconfig = self.plane.create_client(self.name, f"system:node:{self.name}", groups=["system:nodes"])
        settings = self.folder / "kubelet.json"
        settings.write_text(
            json.dumps(
                configs.kubelet(
                    authority=self.plane.authority.own.certificate,
                    cgroup=self.pods.path,
                    containerd_socket=self.socket,
                    pod_logs=self.folder / "logs",
                )
            )
        )
        return self.start_daemon(
            "kubelet",
            binary("kubelet"),
            f"--config={settings}",
            f"--kubeconfig={kubeconfig}",
            f"--root-dir={KUBELET_ROOT}",
            f"--cert-dir={self.folder / 'pki'}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.addresses.node(self.ordinal)}",
            f"--node-labels={NODE_TYPE_LABEL}={'gpu' if self.gpus else 'cpu'}",
        )

    def start_proxy(self) -> Process:
        return self.start_daemon(
            "kube-proxy",
            binary("kube-proxy"),
            f"--kubeconfig={self.plane.client('kube-proxy')}",
            f"--hostname-override={self.name}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={self.addresses.pod_subnet}",
            # Would set a limit of the whole machine.
            "--conntrack-max-per-core=0",
            "--metrics-bind-address=127.0.0.1:10249",
            "--healthz-bind-address=127.0.0.1:10256",
        )

    def advertise_gpus(self) -> None:
        """Give the node its GPUs, as a device plugin would.

        The kubelet keeps resources that it does not know, also when it starts again; if the Node object was deleted,
        this has to be called again.
        """
        amount = {GPU_RESOURCE: str(self.gpus)}
        patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
        self.plane.kubectl("patch", "node", self.name, "--subresource=status", "--type=merge", "-p", patch)

    def restart_kubelet(self) -> None:
        """End the kubelet without warning and start it again; pods keep running."""
        stop([self.process("kubelet")])
        self.start_kubelet()

    def ctr(self, *words: str | Path, timeout: float | None = 600.0) -> str:
        """containerd's own client, on what the kubelet runs."""
        return self.namespace.run("ctr", "--address", self.socket, "--namespace", "k8s.io", *words, timeout=timeout)

    def container_pid(self, container_id: str) -> int:
        """The process id, on this machine, of a container's first process."""
        rows = [line.split() for line in self.ctr("tasks", "list").splitlines()[1:]]
        found = [int(row[1]) for row in rows if row[0] == container_id and row[2] != "STOPPED"]
        if not found:
            raise RigError(f"{self.name} runs no container {container_id}")
        return found[0]

    @staticmethod
    def enter_network(pid: int, *words: str) -> str:
        """Run a command of this machine in the network of a pod, given one of its processes."""
        return run(["nsenter", "--target", str(pid), "--net", *words])

    def stop_everything(self, number: signal.Signals) -> None:
        """Signal the kubelet, containerd, its shims and all containers: SIGSTOP freezes the node, SIGCONT thaws it."""
        for pid in [self.process("kubelet").pid, self.process("containerd").pid, *self.pods.members()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def signal_container(self, container_id: str, number: signal.Signals, *, whole: bool) -> None:
        """Signal a container's first process or, with whole, all of its processes, below the kubelet's nose."""
        first = self.container_pid(container_id)
        for pid in processes_beside(first) if whole else [first]:
            os.kill(pid, number)


def processes_beside(pid: int) -> Sequence[int]:
    """All processes in the control group of this one, children's groups included."""
    from_root = Path(f"/proc/{pid}/cgroup").read_text()
    path = next(line.split(":", 2)[2] for line in from_root.splitlines() if ":pids:" in line or line.startswith("0::/"))
    return sorted(Group(path).members())
