"""Removing a cluster, whatever state it is in: running, half booted, or killed long ago.

Only what can be told to be the cluster's own is touched: processes in its control group or in its records, its control
groups, its interface, its folder.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from tests.cluster.rig.addresses import Addresses, lowest_free
from tests.cluster.rig.cgroups import Group, hierarchies
from tests.cluster.rig.layout import Layout, locked, state_root
from tests.cluster.rig.namespaces import remove_machine_link
from tests.cluster.rig.processes import recorded, stop
from tests.cluster.rig.shell import RigError

PREFIX = "dpo-rig-"


def group_of(layout: Layout) -> Group:
    """The cluster's control group. The folder is part of it: elsewhere the same name is another cluster."""
    place = hashlib.sha256(str(layout.root).encode()).hexdigest()[:6]
    return Group(f"/{PREFIX}{layout.name}-{place}")


def any_cluster() -> bool:
    """Whether any cluster is on this machine, wherever its state is kept."""
    return any(hierarchies().tracking.glob(f"{PREFIX}*"))


def claim_number(layout: Layout) -> int:
    """Take the lowest number that no cluster of this machine has."""
    with locked(state_root() / "numbers.lock"):
        recorded_numbers = [int(file.read_text()) for file in state_root().glob("*/number")]
        number = lowest_free([*recorded_numbers, *numbers_of_interfaces()])
        addresses = Addresses(number)
        layout.root.mkdir(parents=True, exist_ok=True)
        layout.number.write_text(str(addresses.number))
    return number


def numbers_of_interfaces() -> list[int]:
    """Numbers of clusters whose state is kept in some other folder."""
    prefix = "dporig"
    found = [interface.name.removeprefix(prefix) for interface in Path("/sys/class/net").glob(f"{prefix}*")]
    return [int(number) for number in found if number.isdecimal()]


def remove(name: str) -> None:
    """End a cluster's processes and delete its state. Does nothing when there is none."""
    layout = Layout.of(name)
    group = group_of(layout)
    group.kill()
    stop(recorded(layout.processes))
    group.remove()
    if layout.number.exists():
        remove_machine_link(Addresses(int(layout.number.read_text())))
    refuse_mounts_below(layout.root)
    if layout.root.exists():
        shutil.rmtree(layout.root)


def refuse_mounts_below(folder: Path) -> None:
    """Deleting a folder deletes what is mounted in it; the rig itself mounts only in namespaces of its own."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if below := [path for path in mounted if Path(path).is_relative_to(folder)]:
        raise RigError(f"not deleting {folder}: {', '.join(below)} is mounted there")
