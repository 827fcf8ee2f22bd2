"""The comparison of the ranks' speed in real training: it finds a slow one, accuses nobody else, and changes no number."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.planning.stragglers import RATIO
from tests.crowd import crowd
from tests.numerics.interruptions import curve, folder, job, train_until
from tests.numerics.ranks import on_ranks
from tests.numerics.training.test_sigterm import Launch, rank_of

pytestmark = pytest.mark.fault(36)


def endless(root: Path) -> Launch:
    """A pod of two ranks that trains until it's stopped."""
    root.mkdir()
    folder(root)
    document = job(every_steps=1_000_000)
    document["spec"]["training"]["maxSteps"] = 1_000_000
    return Launch(root, 1, document)


@contextmanager
def training(*roots: Path) -> Iterator[list[Launch]]:
    """Pods, killed afterwards with all of their ranks."""
    pods = [endless(root) for root in roots]
    try:
        yield pods
    finally:
        for pod in pods:
            ranks = [rank_of(pod.process.pid, rank) for rank in (0, 1)] if pod.process.poll() is None else []
            for pid in (pod.process.pid, *ranks):
                os.kill(pid, signal.SIGKILL)
            pod.process.wait()


def ratio(pod: Launch) -> float:
    """Of the slowest rank; 0 while nobody knows."""
    status = pod.status()
    return status.slowest.ratio if status and status.slowest else 0.0


# How a kernel shares a core among groups of processes differs from machine to machine, and it takes a minute.
@pytest.mark.campaign
def test_a_rank_on_a_crowded_core_is_found_until_it_is_fast_again(tmp_path: Path):
    first, second = sorted(os.sched_getaffinity(0))[:2]
    with training(tmp_path / "pod") as (pod,):
        pod.until(lambda: (s := pod.status()) and s.step >= 2)
        for rank, core in ((0, first), (1, second)):
            os.sched_setaffinity(rank_of(pod.process.pid, rank), [core])
        with crowd(second, 4):
            begun = time.monotonic()
            found = pod.until(lambda: (s := pod.status()) and s.slowest and s.slowest.ratio >= RATIO and s.slowest, 120)
            print(f"found after {time.monotonic() - begun:.0f} s: {found}")
            assert found.rank == 1
        pod.until(lambda: ratio(pod) < 1.25, 120)


@pytest.mark.campaign
def test_ranks_that_share_a_crowded_machine_evenly_are_not_accused(tmp_path: Path):
    cores = len(os.sched_getaffinity(0))
    pods = [tmp_path / str(number) for number in range(max(2, cores))]
    with training(*pods[: cores if cores <= 4 else 4]) as running:
        for pod in running:
            pod.until(lambda pod=pod: ratio(pod) > 0)
        # As many samples as the mean holds, and more.
        end, seen = time.monotonic() + 25, []
        while time.monotonic() < end:
            seen.append(max(ratio(pod) for pod in running))
            time.sleep(0.5)
    print(f"largest ratio: {max(seen):.2f}")
    assert max(seen) < RATIO


@pytest.mark.numerics
def test_measuring_changes_no_number_of_the_training(tmp_path: Path):
    curves = []
    for compared in (True, False):
        root = tmp_path / str(compared)
        root.mkdir()
        folder(root)
        on_ranks(2, _train, job(every_steps=3), root, compared)
        curves.append((curve(root), manifest(root)))
    assert curves[0] == curves[1]


def manifest(root: Path) -> dict[str, Any]:
    """Digests of the weights and the optimizer's state in the last checkpoint."""
    newest = max((root / "checkpoints").glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return {name: entry for name, entry in json.loads(newest.read_text())["files"].items() if "safetensors" in name}


def _train(document: dict[str, Any], root: Path, compared: bool) -> None:
    from dpo_trainer.training import pace

    pace.LEAST_SECONDS, pace.MOST_TIME = 0.0, 1e9  # in every step
    if not compared:
        pace.MOST_RANKS = 0
    train_until(document, root, 1)
