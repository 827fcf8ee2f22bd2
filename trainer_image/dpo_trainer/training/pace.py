"""Straggler measurement: each rank times a fixed small workload, because step times are equal on all ranks.

Every rank times the same small piece of work now and then, right after a step's gradient. On a GPU that is the time of some matrix
products. On a CPU so short a time is a matter of luck: a rank that may use a fifth of a core runs at full speed for 20 ms and then
waits for 80. There the product's processor time, which tells of a slow core, is stretched by the share of the time since the last
measurement in which this thread could have run and did not, which the kernel counts.

The measurements travel with the sums of the step, one number for each rank, so that nobody waits for them.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import fmean, median

import torch

from dpo_operator.api.reports import SlowestRank
from dpo_trainer.distributed.world import World

# Measurements that are averaged, and how many there must be before anything is said.
WINDOW, LEAST = 8, 3
# At most this share of the time goes into measuring.
MOST_TIME = 0.001
# On a CPU, long enough for the kernel's statistics to mean something, seconds.
LEAST_SECONDS = 1.0
# In larger worlds the exchange itself would take more than that.
MOST_RANKS = 1024
MOST_RATIO = 1e6


class Pace:
    """One rank's view. slowest: of all ranks, None until there are enough measurements, or alone."""

    def __init__(self, world: World, *, seconds: Callable[[], float] | None = None) -> None:
        """seconds: takes a measurement, the real one by default."""
        self.slowest: SlowestRank | None = None
        self._world = world
        self._compares = 1 < world.world_size <= MOST_RANKS
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._next = 0.0
        self._seconds = seconds
        self._first = True

    def share(self) -> dict[str, float]:
        """This rank's share of a sum over ranks, one-hot: its own value, zero for the others."""
        if not self._compares:
            return {}
        self._measure_when_due()
        mine = fmean(self._window) if len(self._window) >= LEAST else 0.0
        return {_name(rank): mine if rank == self._world.rank else 0.0 for rank in range(self._world.world_size)}

    def update(self, sums: Mapping[str, float]) -> None:
        """Compare the ranks. sums: of all shares over ranks."""
        if not self._compares:
            return
        paces = [sums[_name(rank)] for rank in range(self._world.world_size)]
        if min(paces) > 0:
            self.slowest = slowest(paces)

    def _measure_when_due(self) -> None:
        if time.monotonic() < self._next:
            return
        if self._seconds is None:
            self._seconds = _gpu(self._world.device) if self._world.device.type == "cuda" else _cpu()
        begun = time.thread_time()
        seconds = self._seconds()
        # On a GPU the wait for the step's own kernels is no cost of the measurement: they have to run anyway.
        spent = time.thread_time() - begun if self._world.device.type == "cpu" else seconds
        # The first measurement includes warm-up and is discarded.
        if not self._first:
            self._window.append(seconds)
        self._first = False
        self._next = time.monotonic() + max(LEAST_SECONDS, spent / MOST_TIME)


def slowest(paces: list[float]) -> SlowestRank:
    """The rank with the longest time, and how many times as long it is as the median of the others."""
    rank = max(range(len(paces)), key=paces.__getitem__)
    others = median(pace for other, pace in enumerate(paces) if other != rank)
    return SlowestRank(rank=rank, ratio=min(MOST_RATIO, paces[rank] / others))


def _name(rank: int) -> str:
    return f"pace/{rank}"


def _gpu(device: torch.device) -> Callable[[], float]:
    """Wall time of matrix products on a GPU, about a millisecond."""
    work = _products(2048, 8, device, torch.float16)

    def seconds() -> float:
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    return seconds


def _cpu() -> Callable[[], float]:
    """Processor time of a matrix product, about a millisecond, times the wait for the processor since the call before."""
    work = _products(256, 1, torch.device("cpu"), torch.float32)
    before = scheduled()

    def seconds() -> float:
        nonlocal before
        begun, clock = time.thread_time(), time.perf_counter()
        work()
        own, wall = time.thread_time() - begun, time.perf_counter() - clock
        now = scheduled()
        if before is None or now is None:
            return wall
        ran, waited = now[0] - before[0], now[1] - before[1]
        before = now
        return own * (ran + waited) / ran if ran > 0 else wall

    return seconds


def scheduled() -> tuple[int, int] | None:
    """Nanoseconds that this thread ran, and that it was ready to and did not; None where the kernel does not count them."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            ran, waited, _ = file.read().split()
    except (OSError, ValueError):
        return None
    return int(ran), int(waited)


def _products(size: int, rounds: int, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    # Fixed numbers: nothing may draw from the generators that training uses.
    left = torch.full((size, size), 0.5, device=device, dtype=dtype)
    right, out = left.clone(), torch.empty_like(left)

    def work() -> None:
        with torch.no_grad():
            for _ in range(rounds):
                torch.mm(left, right, out=out)

    return work
