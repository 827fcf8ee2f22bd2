"""One real etcd, kube-apiserver and kube-controller-manager for all tests of this tier."""

from collections.abc import Iterator

import pytest

from dpo_operator.api import crd
from tests.apiserver.client import Requests
from tests.cluster.rig import fixture
from tests.cluster.rig.control_plane import ControlPlane
from tests.cluster.rig.shell import wait_for


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """An API without nodes, on loopback; it and its state are gone after the last test."""
    with fixture.control_plane("apiserver") as plane:
        yield plane


@pytest.fixture(scope="session")
def dpojobs(control_plane: ControlPlane) -> Requests:
    """A client of that API, once it serves DPOJobs."""
    control_plane.apply(crd.crd())
    # kubectl refuses to wait for a condition of what has none yet.
    established = ("wait", "--for=condition=Established", f"crd/{crd.NAME}", "--timeout=10s")
    wait_for("DPOJobs to be served", lambda: control_plane.kubectl(*established), timeout=30)
    return Requests(control_plane)
