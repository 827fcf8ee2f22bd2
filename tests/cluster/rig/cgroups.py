"""Control groups: limits for the kubelets' pods, and the certain way to end every process of a cluster.

Whatever a cluster starts (daemons, shims, containers) stays in the groups below `/dpo-rig-<name>`. Both layouts are
supported: one tree (v2), or one tree for each controller (v1, also when v2 is mounted beside it without controllers).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.rig.shell import RigError

V2_CONTROLLERS = "+cpu +cpuset +io +memory +pids"
KILL_SECONDS = 15.0


@dataclass(frozen=True)
class Hierarchies:
    """The mounted control group trees of this machine."""

    v1: dict[str, Path]
    v2: Path | None

    @property
    def trees(self) -> tuple[Path, ...]:
        """The trees in which a kubelet needs its group."""
        if self.v1:
            return tuple(dict.fromkeys(self.v1.values()))
        if self.v2 is None:
            raise RigError("no control groups are mounted")
        return (self.v2,)

    @property
    def tracking(self) -> Path:
        """The one tree by which processes are found again."""
        return self.v1.get("pids") or self.trees[0]


def parse_mountinfo(text: str) -> Hierarchies:
    """Find control group mounts in the text of /proc/self/mountinfo."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        if not after:
            continue
        mount_point = Path(before.split()[4])
        kind, _, options = after.split(maxsplit=2)
        if kind == "cgroup2":
            v2 = mount_point
        elif kind == "cgroup":
            for option in options.split(","):
                if option not in ("rw", "ro", "xattr", "clone_children") and "release_agent" not in option:
                    v1[option] = mount_point
    return Hierarchies(v1, v2)


def hierarchies() -> Hierarchies:
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text())


@dataclass(frozen=True)
class Group:
    """A control group of the same path in every tree, such as /dpo-rig-dev/n1."""

    path: str

    @property
    def tracking(self) -> Path:
        """The group's folder in the tree by which its processes are found."""
        return hierarchies().tracking / self.path.lstrip("/")

    def child(self, name: str) -> Group:
        return Group(f"{self.path}/{name}")

    def make(self) -> None:
        """Make the group and its parents, ready to take processes."""
        found = hierarchies()
        for tree in found.trees:
            folder = tree
            for part in self.path.strip("/").split("/"):
                if not found.v1:
                    # A v2 group passes controllers on only after being told to, and only while it holds no process.
                    (folder / "cgroup.subtree_control").write_text(V2_CONTROLLERS)
                parent, folder = folder, folder / part
                folder.mkdir(exist_ok=True)
                if tree == found.v1.get("cpuset"):
                    # v1 refuses processes in a cpuset without CPUs and memory nodes, and new ones start with none.
                    for file in ("cpuset.cpus", "cpuset.mems"):
                        (folder / file).write_text((parent / file).read_text())

    def members(self) -> set[int]:
        """The ids of all processes in the group and below."""
        found: set[int] = set()
        for folder, _, _ in os.walk(self.tracking):
            with contextlib.suppress(OSError):
                found.update(int(line) for line in (Path(folder) / "cgroup.procs").read_text().split())
        return found

    def kill(self) -> None:
        """End all processes in the group and below, also those that are stopped or fork while this runs."""
        deadline = time.monotonic() + KILL_SECONDS
        while members := self.members():
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise RigError(f"processes that do not end: {sorted(members)}")
            time.sleep(0.02)

    @property
    def remains(self) -> list[Path]:
        """The group's folder in each tree that has it; runc makes groups in an idle v2 tree, too."""
        found = hierarchies()
        trees = dict.fromkeys([*found.trees, *([found.v2] if found.v2 else [])])
        return [folder for tree in trees if (folder := tree / self.path.strip("/")).exists()]

    def remove(self) -> None:
        """Remove the group, and all below it, from every tree."""
        for remains in self.remains:
            for folder, _, _ in os.walk(remains, topdown=False):
                remove_folder(Path(folder))


def remove_folder(folder: Path) -> None:
    """Remove one group's folder; the kernel may need a moment after its last process has ended."""
    for _ in range(50):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RigError(f"{folder} is still in use")
