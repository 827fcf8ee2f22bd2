"""Which rank is slow by itself, from the figures that the ranks exchange."""

import threading
import time

import pytest
import torch

from dpo_trainer.distributed.world import World
from dpo_trainer.training import pace
from dpo_trainer.training.pace import LEAST, Pace, slowest

pytestmark = [pytest.mark.unit, pytest.mark.fault(36)]

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("paces", "rank", "ratio"),
    [
        ([1.0, 5.0], 1, 5.0),
        ([1.0, 1.0, 3.0, 1.0], 2, 3.0),
        ([2.0, 2.0, 2.0], 0, 1.0),
        # Two slow ones of four: the median of the others is between.
        ([1.0, 4.0, 4.0, 1.0], 1, 4.0),
        ([1e-9, 1e9], 1, pace.MOST_RATIO),
    ],
)
def test_the_slowest_is_compared_with_the_median_of_the_others(paces: list[float], rank: int, ratio: float):
    found = slowest(paces)
    assert found.rank == rank
    assert found.ratio == pytest.approx(ratio)


def run(worlds: list[Pace], rounds: int) -> None:
    """So many exchanges, as the sum over ranks makes them."""
    for _ in range(rounds):
        shares = [one.share() for one in worlds]
        total = {name: sum(share[name] for share in shares) for name in shares[0]}
        for one in worlds:
            one.update(total)


def test_all_ranks_learn_of_the_slowest_when_each_has_measured_enough(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    worlds = [Pace(World(rank, 3, CPU), seconds=lambda rank=rank: 0.004 if rank == 2 else 0.001) for rank in range(3)]
    for _ in range(LEAST):  # the first measurement is a rehearsal
        run(worlds, 1)
        assert {one.slowest for one in worlds} == {None}
        now[0] += pace.LEAST_SECONDS
    run(worlds, 1)
    for one in worlds:
        assert (one.slowest.rank, one.slowest.ratio) == (2, pytest.approx(4.0))


def test_measuring_takes_a_thousandth_of_the_time_however_short_the_steps():
    measured = 0

    def costly() -> float:
        nonlocal measured
        measured += 1
        end = time.thread_time() + 0.005
        while time.thread_time() < end:
            pass
        return 0.005

    one = Pace(World(0, 2, CPU), seconds=costly)
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        one.share()
        time.sleep(0.001)
    assert measured == 1  # the next one is due after 5 s


def test_waiting_for_the_steps_kernels_does_not_put_a_measurement_off():
    def behind_a_backlog() -> float:
        time.sleep(0.05)
        return 0.0005

    gpu = Pace(World(0, 2, torch.device("cuda", 0)), seconds=behind_a_backlog)
    gpu.share()
    assert gpu._next - time.monotonic() <= 1.0


@pytest.mark.parametrize("world_size", [1, pace.MOST_RANKS + 1])
def test_alone_or_among_too_many_nothing_is_measured(world_size: int):
    def never() -> float:
        raise AssertionError

    one = Pace(World(0, world_size, CPU), seconds=never)
    assert one.share() == {}
    one.update({})
    assert one.slowest is None


def test_measuring_draws_no_random_number_and_changes_no_mode():
    before = torch.get_rng_state()
    measure = pace._cpu()
    with torch.enable_grad():
        assert measure() > 0
        assert torch.is_grad_enabled()
    assert torch.equal(before, torch.get_rng_state())


def test_the_kernel_counts_the_time_of_this_thread_alone():
    found = pace.scheduled()
    assert found is not None
    other = threading.Thread(target=lambda: sum(range(5_000_000)))
    other.start()
    other.join()
    begun = time.thread_time()
    while time.thread_time() < begun + 0.05:
        pass
    later = pace.scheduled()
    assert 0.04 < (later[0] - found[0]) / 1e9 < 0.5


def test_without_scheduler_statistics_wall_time_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pace, "scheduled", lambda: None)
    assert 0 < pace._cpu()() < 5
