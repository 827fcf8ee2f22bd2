"""Early stopping in whole runs: it ends them where the rule says, and no interruption moves that place."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_operator.api.types import DPOJob
from dpo_trainer.checkpoint import layout
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.runtime.stop import StopRequest
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.telemetry.metrics_file import read_metrics
from tests.numerics.jobs import VOCABULARY, a_job, make_model
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = pytest.mark.numerics

PATIENCE, MIN_DELTA, EVERY, MAX_STEPS = 2, 0.0005, 2, 40
KEYS = {
    "eval_loss": ("eval_loss", 1.0),
    "eval_reward_margin": ("eval_rewards/margins", -1.0),
    "eval_reward_accuracy": ("eval_rewards/accuracies", -1.0),
}


def polite_and_rude(count: int, *, seed: int) -> PairDataset:
    """Pairs whose chosen answers mostly use one half of the vocabulary: what can be learnt is soon learnt, the rest is overfitting."""
    rng = np.random.default_rng(seed)

    def answer(side: int) -> np.ndarray:
        half = VOCABULARY // 2
        lower = rng.random(6) < (0.65 if side == 0 else 0.35)
        return np.where(lower, rng.integers(3, half, 6), rng.integers(half, VOCABULARY, 6)).astype(np.int32)

    return PairDataset.from_pairs(
        TokenPair(rng.integers(3, VOCABULARY, 4).astype(np.int32), answer(0), answer(1), row) for row in range(count)
    )


def a_stopping_job(metric: str) -> dict[str, Any]:
    document = a_job(maxSteps=MAX_STEPS, globalBatchSize=8, microBatchSize=4, learningRate=8e-3, warmupRatio=0.0)
    document["spec"] |= {
        "evaluation": {"everySteps": EVERY, "samples": 0},
        "earlyStopping": {"metric": metric, "patience": PATIENCE, "minDelta": MIN_DELTA},
        "checkpoint": {"everySteps": 3, "keepLast": 1, "keepBest": 1},
    }
    return document


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and data; runs are made in copies."""
    work = WorkDir(tmp_path_factory.mktemp("prepared"))
    polite_and_rude(48, seed=0).save(work.train_data)
    polite_and_rude(32, seed=1).save(work.eval_data)
    on_ranks(1, make_model, work.model)
    return work.root


def train_rank(document: dict[str, Any], root: Path, attempt: int = 1, end: tuple[str, int] | None = None) -> str:
    """Be one rank. end: SIGKILL or SIGTERM for rank 1, and after which step. How the run ended, in words."""
    from dpo_trainer.training import train

    rank, stop = int(os.environ["RANK"]), StopRequest()

    class Interrupted(Telemetry):
        def step(self, step: int, **news: Any) -> None:
            super().step(step, **news)
            if end is not None and (rank, step) == (1, end[1]):
                if end[0] == "SIGKILL":
                    os.kill(os.getpid(), signal.SIGKILL)
                stop.signal_name = end[0]

    telemetry = Interrupted("train", attempt, WorkDir(root), rank=rank, local_rank=rank, world_size=2)
    ended = train.run(DPOJob.model_validate(document), WorkDir(root), telemetry=telemetry, attempt=attempt, stop=stop)
    telemetry.close()
    return f"{ended.status}: {ended.message} {telemetry.progress.step}/{telemetry.progress.max_steps}"


def history(root: Path, key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in read_metrics(root / "metrics.jsonl") if key in line]


def last_progress(costs: list[tuple[int, float]]) -> int:
    """The rule in other words than the trainer's: the step from which on nothing is lower by MIN_DELTA."""
    place = 0
    for later in range(1, len(costs)):
        if costs[place][1] - costs[later][1] >= MIN_DELTA:
            place = later
    return costs[place][0]


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(prepared, root)
    on_ranks(2, train_rank, a_stopping_job("eval_loss"), root)
    return root


@pytest.mark.parametrize("metric", KEYS)
def test_a_run_stops_where_the_metric_no_longer_improves(prepared: Path, whole: Path, tmp_path: Path, metric: str):
    root = whole
    if metric != "eval_loss":
        root = tmp_path / "run"
        shutil.copytree(prepared, root)
        on_ranks(2, train_rank, a_stopping_job(metric), root)
    key, sign = KEYS[metric]
    costs = [(step, sign * value) for step, value in history(root, key)]
    best, last = last_progress(costs), costs[-1][0]

    assert last < MAX_STEPS
    assert last == best + PATIENCE * EVERY
    # Evaluations before the last one did not stop it.
    assert all(step - last_progress(costs[: i + 1]) < PATIENCE * EVERY for i, (step, _) in enumerate(costs[:-1]))
    # What is kept: the best evaluation, and the end.
    kept = _steps(layout.committed(root / "checkpoints"))
    assert last in kept
    assert [dict(costs)[step] for step in kept if step != last] == [min(value for _, value in costs)]
    # A run that is over does nothing when it is started again, and still says why it ended.
    before = (root / "metrics.jsonl").read_bytes()
    said = on_ranks(2, train_rank, a_stopping_job(metric), root, 2)
    assert (
        said
        == [
            f"Succeeded: Stopped early after step {last} of {MAX_STEPS}: {metric} has not improved by {MIN_DELTA:g} since step {best}. {last}/{last}"
        ]
        * 2
    )
    assert (root / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("how", "step"), [("SIGKILL", 5), pytest.param("SIGTERM", 3, marks=pytest.mark.exhaustive)])
def test_an_interrupted_run_stops_at_the_same_step(prepared: Path, whole: Path, tmp_path: Path, how: str, step: int):
    root = tmp_path / "run"
    shutil.copytree(prepared, root)
    if how == "SIGKILL":
        with pytest.raises(RankFailed):
            on_ranks(2, train_rank, a_stopping_job("eval_loss"), root, 1, (how, step))
    else:
        # It is heard with step 4, which then has no evaluation; the next attempt makes up for it.
        first = on_ranks(2, train_rank, a_stopping_job("eval_loss"), root, 1, (how, step))
        assert (
            first
            == [f"Stopped: Stopped after step 4 of {MAX_STEPS}; a checkpoint of it was committed. 4/{MAX_STEPS}"] * 2
        )
        assert [line[0] for line in history(root, "eval_loss")] == [2]
    said = on_ranks(2, train_rank, a_stopping_job("eval_loss"), root, 2)

    theirs = history(whole, "eval_loss")
    ours = history(root, "eval_loss")
    assert said[0].startswith(f"Succeeded: Stopped early after step {theirs[-1][0]} of ")
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-4)
    assert _steps(layout.committed(root / "checkpoints")) == _steps(layout.committed(whole / "checkpoints"))


def _steps(found: list[tuple[int, Path]]) -> list[int]:
    return [step for step, _ in found]
