"""What the benchmark of saves makes of a run's times."""

import pytest

from benchmarks.checkpoints import side_of, summary

pytestmark = pytest.mark.unit


def test_shares_are_for_the_interval_that_was_asked_for():
    # Steps of 2 s; one after a save of ours takes 3 s, because the background works beside it.
    lengths = [2.0] * 4 + [3.0, 2.0, 2.0, 2.0] + [2.0] * 4
    steps = [(0.0, length) for length in lengths]
    assert [side_of(step, 4) for step in (4, 8)] == ["ours", "deepspeed"]
    found = summary(steps, [0.5, 5.0], gap=4, every=10)

    assert found["ours"] == pytest.approx(
        {"saves": 1, "step": 2.0, "wait": 0.5, "share": 0.5 / 20.5, "cost": 1.5 / 21.5}
    )
    assert found["deepspeed"] == pytest.approx({"saves": 1, "step": 2.0, "wait": 5.0, "share": 0.2, "cost": 0.2})
