"""Network and mount namespaces for the control plane and each node.

A namespace lives as long as a process in it does, so each is held by one process that only sleeps. Nothing is mounted or
named on the machine itself: when a cluster's processes are gone, so are its interfaces, routes and mounts, whatever way
they ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.rig.addresses import SERVICE_SUBNET, Addresses
from tests.cluster.rig.processes import Process, spawn
from tests.cluster.rig.shell import RigError, run, wait_for

BRIDGE = "br0"
# Mount events must stay among this namespace's own processes, and still reach containers that ask for them.
HOLD = 'mount --make-rshared / && echo ready > "$0" && exec sleep infinity'


@dataclass(frozen=True)
class Namespace:
    """A network and a mount namespace, held by a process."""

    holder: Process

    @classmethod
    def create(cls, name: str, *, records: Path, log: Path, group: Path) -> Namespace:
        ready = records / f"{name}.ready"
        ready.unlink(missing_ok=True)
        words: list[str | Path] = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", HOLD, ready]
        holder = spawn(name, words, records=records, log=log, group=group)
        wait_for(f"namespace {name}", ready.exists, timeout=10.0, every=0.01)
        namespace = cls(holder)
        namespace.run("ip", "link", "set", "lo", "up")
        # Not `ip netns exec`: it mounts a new /sys, which hides the control groups from a kubelet.
        # The second: every packet to nowhere is answered at once, where one answer a second is usual.
        namespace.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.icmp_ratelimit=0")
        return namespace

    @property
    def enter(self) -> tuple[str, ...]:
        """The words that make a command run inside."""
        return ("nsenter", "--target", str(self.holder.pid), "--net", "--mount")

    def run(self, *words: str | Path, stdin: str | None = None, timeout: float | None = 60.0) -> str:
        if not self.holder.alive:
            raise RigError(f"{self.holder.name} is gone")
        return run([*self.enter, *words], stdin=stdin, timeout=timeout)


def connect_machine(control_plane: Namespace, addresses: Addresses) -> None:
    """Link the control plane to the machine itself, so that kubectl works from any shell.

    Only the control plane's own address is routed, and nodes have no route back: this is no way out for them.
    """
    inside, outside = "host", addresses.host_interface
    remove_machine_link(addresses)
    create_link(outside, None, inside, control_plane)
    run(["ip", "address", "add", f"{addresses.host_side}/30", "dev", outside])
    run(["ip", "link", "set", outside, "up"])
    control_plane.run("ip", "address", "add", f"{addresses.control_plane_host_side}/30", "dev", inside)
    control_plane.run("ip", "link", "set", inside, "up")
    run(["ip", "route", "replace", f"{addresses.control_plane}/32", "via", addresses.control_plane_host_side])


def remove_machine_link(addresses: Addresses) -> None:
    """The kernel takes the link away with the namespace at its other end, but not at once."""
    if Path("/sys/class/net", addresses.host_interface).exists():
        run(["sh", "-c", f"ip link delete {addresses.host_interface} || ! ip link show {addresses.host_interface}"])


def create_bridge(control_plane: Namespace, addresses: Addresses) -> None:
    control_plane.run("ip", "link", "add", BRIDGE, "type", "bridge")
    control_plane.run("ip", "address", "add", f"{addresses.control_plane}/24", "dev", BRIDGE)
    control_plane.run("ip", "link", "set", BRIDGE, "up")


def connect_node(
    control_plane: Namespace, node: Namespace, ordinal: int, ordinals: Sequence[int], addresses: Addresses
) -> None:
    """Link a node to the bridge and tell both sides where pods live."""
    port, own = f"n{ordinal}", addresses.node(ordinal)
    create_link(port, control_plane, "eth0", node)
    control_plane.run("ip", "link", "set", port, "master", BRIDGE, "up")
    node.run("ip", "address", "add", f"{own}/24", "dev", "eth0")
    node.run("ip", "link", "set", "eth0", "up")
    # Services have no machine behind them, but a packet needs a route before kube-proxy's rules turn it elsewhere.
    node.run("ip", "route", "add", SERVICE_SUBNET, "via", addresses.control_plane)
    for other in ordinals:
        if other != ordinal:
            node.run("ip", "route", "add", addresses.node_pods(other), "via", addresses.node(other))
    control_plane.run("ip", "route", "add", addresses.node_pods(ordinal), "via", own)


def create_link(name: str, where: Namespace | None, peer_name: str, peer: Namespace) -> None:
    """A pair of virtual interfaces between two namespaces, or between this machine and one."""
    place = ["netns", str(where.holder.pid)] if where else []
    peer_place = ["netns", str(peer.holder.pid)]
    run(["ip", "link", "add", name, *place, "type", "veth", "peer", "name", peer_name, *peer_place])


def set_port(control_plane: Namespace, ordinal: int, *, up: bool) -> None:
    """Plug a node's cable in or pull it. Done at the bridge: taking eth0 down would lose the node's routes."""
    control_plane.run("ip", "link", "set", f"n{ordinal}", "up" if up else "down")
