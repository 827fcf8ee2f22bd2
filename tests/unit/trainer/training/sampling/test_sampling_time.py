"""When answers are sampled: within a share of the run's time, but at the start, soon and at the end in any case."""

import pytest

from dpo_trainer.training.sampling.sampling_time import SHARE, SOON, SamplingTime

pytestmark = pytest.mark.unit


def sampled(cost: float, *, steps: int = 1000, every: int = 20, step_seconds: float = 1.0, begin: int = 0) -> list[int]:
    """Steps after which a run samples, whose answers take cost seconds each time."""
    now = 0.0
    time, taken = SamplingTime(steps, every, resumed_step=begin, clock=lambda: now), []
    for step in range(begin, steps + 1):
        now += step_seconds if step > begin else 0.0
        evaluated = step == begin == 0 or (step > begin and (step % every == 0 or step == steps))
        if evaluated and time.allows(step):
            now += cost
            time.add(cost)
            taken.append(step)
    return taken


def test_cheap_answers_are_sampled_each_time():
    assert sampled(0.1) == list(range(0, 1001, 20))


@pytest.mark.parametrize("cost", [0.7, 1.0, 3.0, 7.0])
def test_answers_take_their_share_of_the_time_and_no_more(cost: float):
    taken = sampled(cost)
    assert {0, 200, 1000} <= set(taken)
    if len(taken) > 3:
        assert len(taken) * cost <= SHARE * 1000 + cost
    # They use it, too.
    assert (len(taken) + 2) * cost > 0.8 * SHARE * 1000


def test_the_expensive_are_sampled_three_times():
    assert sampled(500.0) == [0, 200, 1000]
    assert sampled(500.0, steps=100, every=30) == [0, 30, 100]
    assert sampled(500.0, steps=10, every=100) == [0, 10]


def test_some_come_early_and_some_late():
    taken = sampled(2.0)
    assert min(step for step in taken if step) <= SOON * 1000
    assert [step for step in taken if step > 500]


def test_a_resumed_run_learns_the_cost_and_then_keeps_to_its_share():
    taken = sampled(5.0, begin=500)
    assert taken[0] == 520
    assert taken[-1] == 1000
    assert len(taken) * 5.0 <= SHARE * 500 + 5.0
