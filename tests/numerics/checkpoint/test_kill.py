"""Killed at any instant, on any rank: an intact checkpoint stays, and the joined run equals an undisturbed one bit for bit."""

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.full import open_newest
from tests.numerics.interruptions import beginning, curve, folder, job, train_until
from tests.numerics.jobs import some_pairs
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = [pytest.mark.numerics, pytest.mark.fault(30)]

SHARD = ["shard-opened", "shard-half", "shard-written", "shard-synced"]
BEFORE = [
    (0, p)
    for p in ("copied", "space-checked", "folder-made", *SHARD, "digests-gathered", "manifest-synced", "fence-checked")
]
BEFORE += [(1, p) for p in ("copied", *SHARD)]
# Rank 1's shard is complete and its digest known, so rank 0 may commit although rank 1 is gone.
EITHER = [(1, "digests-gathered")]
AFTER = [(0, p) for p in ("renamed", "committed", "old-removed")]
STEPS = 8
# Of each of two chains of runs: of the exhaustive test, and how many are enough elsewhere when they fell early and late.
KILLS, FEW_KILLS = 25, 5


def test_every_sub_step_of_a_save_on_every_rank(tmp_path: Path, whole: Path):
    """One run, killed once at each point: each attempt makes one step and dies in that step's save."""
    root, document = _folder(tmp_path), _document(every_steps=1)
    step = 0
    for attempt, (rank, point) in enumerate(BEFORE + EITHER + AFTER, 1):
        with pytest.raises(RankFailed):
            on_ranks(2, _killed_in_save, document, root, attempt, (rank, step + 1, point), patience=5)
        newest = _newest(root)
        allowed = {step} if (rank, point) in BEFORE else {step + 1} if (rank, point) in AFTER else {step, step + 1}
        assert newest in allowed, f"rank {rank} killed at {point}"
        step = newest

    first, _ = on_ranks(2, train_until, document, root, attempt + 1)
    assert (first["status"], first["resumed_from"]) == ("Succeeded", step)
    assert layout.temporary_folders(root / "checkpoints") == []
    assert curve(root) == curve(whole)


@pytest.mark.parametrize("least", [FEW_KILLS, pytest.param(KILLS, marks=pytest.mark.exhaustive)])
def test_random_instants(tmp_path: Path, whole: Path, seconds: list[float], least: int):
    """The instants fall into start-up, steps, saves and evaluations; a finished run is started again."""
    with ThreadPoolExecutor(2) as pool:
        chains = [pool.submit(_kill_many, tmp_path / str(seed), seed, seconds, whole, least) for seed in (1, 2)]
        ends = [end for chain in chains for end in chain.result()]

    # The instants were spread as intended: some attempts died before the first step, and some after many.
    assert len(ends) >= 2 * least
    assert min(ends) == 0
    assert max(ends) >= STEPS - 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """Root of an undisturbed run, and the processor seconds until its first step and until its end."""
    root = _folder(tmp_path_factory.mktemp("whole"))
    ranks = on_ranks(2, train_until, _document(every_steps=2), root, 1)
    return root, ranks[0]["seconds"]


@pytest.fixture(scope="module")
def whole(undisturbed: tuple[Path, list[float]]) -> Path:
    return undisturbed[0]


@pytest.fixture(scope="module")
def seconds(undisturbed: tuple[Path, list[float]]) -> list[float]:
    return undisturbed[1]


def _kill_many(root: Path, seed: int, seconds: list[float], whole: Path, least: int) -> list[int]:
    """Kill ranks until there were enough, and let every run finish; returns the last step of each killed attempt."""
    rng, document, ends, run = random.Random(seed), _document(every_steps=2), list[int](), 0
    while not _enough(ends, least):
        run, attempt, finished, before = run + 1, 0, False, 0
        work = root / str(run)
        for part in ("model", "data"):
            shutil.copytree(whole / part, work / part)
        while not finished:
            attempt += 1
            start_up, end = seconds
            likely_end = start_up + (end - start_up) * (STEPS - before) / STEPS
            kill_at = (rng.randrange(2), rng.uniform(0, likely_end)) if not _enough(ends, least) else None
            try:
                on_ranks(2, _killed_at, document, work, attempt, kill_at, patience=5)
                finished = True
            except RankFailed:
                lines = curve(work)
                ends.append(lines[-1]["step"] if lines else 0)
                newest = _newest(work)
                assert newest >= before, "a committed checkpoint was lost"
                before = newest
        assert curve(work) == curve(whole)
        assert beginning(work) == beginning(whole)
        assert layout.temporary_folders(work / "checkpoints") == []
    return ends


def _enough(ends: list[int], least: int) -> bool:
    """Whether at least `least` ranks were killed, some before the first step and some after many; KILLS are always enough."""
    early_and_late = len(ends) >= least and min(ends) == 0 and max(ends) >= STEPS - 2
    return early_and_late or len(ends) >= KILLS


def _newest(root: Path) -> int:
    """Step of the newest checkpoint, of which every byte is read; 0 without one. Fails if one is refused."""
    if not layout.committed(root / "checkpoints"):
        return 0
    newest, refused = open_newest(root / "checkpoints")
    assert refused == []
    return newest.manifest.step


def _folder(root: Path) -> Path:
    work = folder(root)
    some_pairs(3, seed=1).save(work.eval_data)
    return root


def _document(every_steps: int) -> dict[str, Any]:
    document = job(every_steps=every_steps)
    document["spec"]["training"]["maxSteps"] = STEPS
    document["spec"]["data"]["eval"] = {"source": "small.jsonl"}
    document["spec"]["evaluation"] = {"everySteps": 3, "samples": 0}
    return document


def _killed_in_save(document: dict[str, Any], root: Path, attempt: int, where: tuple[int, int, str]) -> dict[str, Any]:
    return train_until(document, root, attempt, kill_in_save=where)


def _killed_at(document: dict[str, Any], root: Path, attempt: int, at: tuple[int, float] | None) -> dict[str, Any]:
    return train_until(document, root, attempt, kill_at=at)
