"""Fixtures that several tests of the trainer share."""

from collections.abc import Iterator

import pytest

from tests.unit.trainer.launched import Pod


@pytest.fixture
def started() -> Iterator[list[Pod]]:
    """Pods that a test started, ended afterwards."""
    pods: list[Pod] = []
    yield pods
    for pod in pods:
        if pod.process.poll() is None:
            pod.process.kill()
            pod.process.wait()
