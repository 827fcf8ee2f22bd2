"""A DPOJob that is older than one that was known before is one wrong answer, or an old copy of the storage."""

import pytest

from dpo_operator.planning.certainty import SECOND_LOOK_SECONDS
from dpo_operator.queueing.stopwatch import Stopwatch
from dpo_operator.reconcile.memory import JobMemory

pytestmark = pytest.mark.unit


def raw(version: str):
    return {"metadata": {"resourceVersion": version}}


def test_older_read_waits_for_a_second_look():
    now = 0.0
    memory = JobMemory(older=Stopwatch(clock=lambda: now))
    memory.saw("100")
    assert memory.outdated_for(raw("99")) == SECOND_LOOK_SECONDS
    assert memory.dirty
    now = 1.0
    assert memory.outdated_for(raw("100")) == 0
    # Another wrong answer is a first one again.
    assert memory.outdated_for(raw("99")) == SECOND_LOOK_SECONDS
    now += SECOND_LOOK_SECONDS
    # A storage that was restored counts from now on.
    assert memory.outdated_for(raw("98")) == 0
    assert memory.outdated_for(raw("99")) == 0


def test_versions_that_are_no_numbers_are_never_older():
    memory = JobMemory()
    memory.saw("100")
    assert memory.outdated_for(raw("a")) == 0
