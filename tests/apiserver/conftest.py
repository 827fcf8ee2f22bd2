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
    # kubectl's own wait fails on a CRD that has no conditions yet.
    words = ("get", f"crd/{crd.NAME}", "-o", "jsonpath={.status.conditions[?(@.type=='Established')].status}")
    wait_for("the CRD to be established", lambda: control_plane.kubectl(*words) == "True", timeout=30.0, every=0.1)
    return Requests(control_plane)
