"""One cluster for all tests of this tier, with the chart installed and real inputs on a claim."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import scenario
from tests.cluster.rig import fixture
from tests.cluster.rig.cluster import Cluster
from tests.cluster.scenario import Job


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A CPU node n1 and two "GPU" nodes n2 and n3."""
    with fixture.cluster("test") as booted:
        yield booted


@pytest.fixture(scope="session")
def installed(cluster: Cluster, shared: Path) -> Cluster:
    """The cluster with the operator running and a claim `inputs` of models and data."""
    scenario.install_with_inputs(cluster, shared)
    return cluster


@pytest.fixture(scope="session")
def spec() -> dict[str, Any]:
    """A small job on two nodes: 32 optimizer steps of 8 pairs, a checkpoint every 4."""
    return {
        "model": {"name": "pvc://inputs/stories260K"},
        "data": {
            "train": {"source": "pvc://inputs/hh/train.jsonl", "limit": 256},
            "eval": {"source": "pvc://inputs/hh/test.jsonl", "limit": 16},
            "maxLength": 256,
        },
        "training": {
            "learningRate": 1e-4,
            "globalBatchSize": 8,
            "microBatchSize": 2,
            "precision": "fp32",
            "gradientCheckpointing": False,
        },
        "evaluation": {"everySteps": 8, "samples": 4, "sampleTokens": 16},
        "checkpoint": {"everySteps": 4, "volume": {"size": "1Gi", "retention": "Delete"}},
        "nodes": 2,
        "gpusPerNode": 1,
    }


@pytest.fixture
def job(installed: Cluster, request: pytest.FixtureRequest) -> Iterator[Job]:
    """A job named after the test, deleted afterwards."""
    name = re.sub("[^a-z0-9]+", "-", str(request.node.name).removeprefix("test_"))[:40].strip("-")
    made = Job(installed, name)
    yield made
    made.delete()
    installed.refill_volumes()
