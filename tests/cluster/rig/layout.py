"""Where the rig keeps things on this machine. Nothing of it lies inside the checkout."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.cluster.rig.shell import RigError

CHECKOUT = Path(__file__).resolve().parents[3]
GO_MODULES = Path(__file__).resolve().parent / "go"
STATE_VARIABLE = "DPO_RIG_STATE"
DEFAULT_NAME = "dev"


def cache_root() -> Path:
    """What is slow to make and the same for every checkout: binaries, the base image, image layers."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpo-operator"


def discard_interrupted(name: str) -> None:
    """Remove what an interrupted build left in the cache; the caller holds the lock of that name."""
    for leftover in cache_root().glob(f".{name}-*"):
        shutil.rmtree(leftover)


def state_root() -> Path:
    """What lives as long as the clusters do. Kept short: the paths of Unix sockets end at 107 characters."""
    return Path(os.environ.get(STATE_VARIABLE) or Path(tempfile.gettempdir()) / "dpo-rig")


@dataclass(frozen=True)
class Layout:
    """The folders and files of one cluster."""

    name: str
    root: Path

    @classmethod
    def of(cls, name: str) -> Layout:
        return cls(name, state_root() / name)

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def processes(self) -> Path:
        return self.root / "processes"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "admin.conf"

    @property
    def description(self) -> Path:
        """What was booted, written last: its presence says that the start came to its end."""
        return self.root / "cluster.json"

    @property
    def left_running(self) -> Path:
        """Its presence says that the cluster's user left it running on purpose."""
        return self.root / "left-running"

    @property
    def number(self) -> Path:
        """The cluster's number among those of this machine; addresses are derived from it."""
        return self.root / "number"

    def node(self, node: str) -> Path:
        return self.root / node


@contextmanager
def locked(path: Path, *, busy: str | None = None, patience: float = 0.0) -> Iterator[IO[str]]:
    """Hold an exclusive lock between processes; the kernel drops it when its last holder dies.

    Waits for another holder, unless a message says why that one will not let go soon: then it becomes a RigError after
    so many seconds of patience.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with path.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise RigError(busy) from error
                time.sleep(0.1)
        yield handle
