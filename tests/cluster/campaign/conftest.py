"""A cluster with a spare GPU node, for tests that take one away."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import scenario
from tests.cluster.rig import fixture
from tests.cluster.rig.cluster import Cluster, Shape
from tests.cluster.scenario import Job
from tests.cluster.witness import Undisturbed, ending


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A CPU node n1 and three "GPU" nodes."""
    with fixture.cluster("faults", shape=Shape(gpus=(0, 1, 1, 1))) as booted:
        yield booted


@pytest.fixture(scope="session")
def installed(cluster: Cluster, shared: Path) -> Cluster:
    """The cluster with the operator running and a claim `inputs` of models and data."""
    scenario.install_with_inputs(cluster, shared)
    return cluster


@pytest.fixture(scope="session")
def undisturbed(installed: Cluster, spec: dict[str, Any]) -> Undisturbed:
    """The job that nothing happens to."""
    job = Job(installed, "undisturbed")
    job.apply(spec)
    job.wait_for_state("Complete")
    found = Undisturbed(job.metrics(), ending(job))
    job.delete()
    installed.refill_volumes()
    return found
