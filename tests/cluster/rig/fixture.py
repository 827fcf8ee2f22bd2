"""Clusters as context managers, for tests: booted before the first, removed after the last.

DPO_RIG_KEEP=1 leaves the cluster running afterwards, to look at it, and uses one that is already running.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.rig.cluster import Cluster, Shape
from tests.cluster.rig.control_plane import ControlPlane, Endpoints
from tests.cluster.rig.shell import RigError, step
from tests.cluster.rig.usage import in_use

KEEP_VARIABLE = "DPO_RIG_KEEP"


@contextmanager
def cluster(name: str = "test", *, shape: Shape | None = None) -> Iterator[Cluster]:
    """A whole cluster: a CPU node n1 and GPU nodes n2, n3 unless another shape is asked for."""
    with in_use(name) as use:
        booted = running(name) if keep() else None
        if not booted:
            booted = Cluster.boot(use, shape)
        elif booted.shape.images:
            booted.load_images()
        if keep():
            use.leave_running()
        yield booted


@contextmanager
def control_plane(
    name: str = "api", *, scheduler: bool = False, audit: bool = False, qps: int | None = None
) -> Iterator[ControlPlane]:
    """An API server with its controllers and no nodes, on loopback; needs no root. qps: see ControlPlane."""
    with in_use(name) as use:
        plane = ControlPlane(use.begin(), Endpoints.on_loopback(), audit=audit, qps=qps)
        with step(f"starting an API server ({name})"):
            plane.start(scheduler=scheduler)
        yield plane


def running(name: str) -> Cluster | None:
    """The cluster of this name, if it came up once and all of it still runs."""
    try:
        found = Cluster.open(name)
    except RigError:
        return None
    return found if found.healthy else None


def keep() -> bool:
    return bool(os.environ.get(KEEP_VARIABLE))
