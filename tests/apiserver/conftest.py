"""One real etcd, kube-apiserver and kube-controller-manager for all tests of this tier."""

import os
from collections.abc import Iterator

import pytest

from dpo_operator.generate import crd
from tests.apiserver.client import Requests, wait_until_served
from tests.cluster.rig import fixture
from tests.cluster.rig.control_plane import ControlPlane


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """An API without nodes, on loopback; it and its state are gone after the last test."""
    # Of each process that pytest-xdist starts, one of its own.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    with fixture.control_plane(f"apiserver-{worker}") as plane:
        yield plane


@pytest.fixture(scope="session")
def dpojobs(control_plane: ControlPlane) -> Requests:
    """A client of that API, once it serves DPOJobs."""
    control_plane.apply(crd.crd())
    wait_until_served(control_plane, crd.NAME)
    return Requests(control_plane)
