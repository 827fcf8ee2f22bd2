"""Clusters as context managers, for tests: booted before the first, removed after the last.

DPO_RIG_KEEP=1 leaves the cluster running afterwards, to look at it, and uses one that is already running.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.rig import remains
from tests.cluster.rig.cluster import Cluster, Shape
from tests.cluster.rig.control_plane import ControlPlane, Endpoints
from tests.cluster.rig.layout import Layout, locked, state_root
from tests.cluster.rig.shell import RigError, step

KEEP_VARIABLE = "DPO_RIG_KEEP"


@contextmanager
def cluster(name: str = "test", *, shape: Shape | None = None) -> Iterator[Cluster]:
    """A whole cluster: a CPU node n1 and GPU nodes n2, n3 unless another shape is asked for."""
    with in_use(name):
        booted = running(name) if keep() else None
        if not booted:
            booted = Cluster.boot(name, shape)
        elif booted.shape.images:
            booted.load_images()
        try:
            yield booted
        finally:
            if not keep():
                booted.destroy()


@contextmanager
def control_plane(name: str = "api", *, scheduler: bool = False) -> Iterator[ControlPlane]:
    """An API server with its controllers and no nodes, on loopback; needs no root."""
    with in_use(name):
        remains.remove(name)
        plane = ControlPlane(Layout.of(name), Endpoints.on_loopback())
        try:
            with step(f"starting an API server ({name})"):
                plane.start(scheduler=scheduler)
            yield plane
        finally:
            remains.remove(name)


def running(name: str) -> Cluster | None:
    """The cluster of this name, if it came up once and all of it still runs."""
    try:
        found = Cluster.open(name)
    except RigError:
        return None
    return found if found.healthy else None


def keep() -> bool:
    return bool(os.environ.get(KEEP_VARIABLE))


@contextmanager
def in_use(name: str) -> Iterator[None]:
    """One user at a time: a second run of the tests must not remove the first one's cluster."""
    with locked(state_root() / f"{name}.lock", busy=f"cluster {name} is in use by another process"):
        yield
