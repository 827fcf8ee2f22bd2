"""What the operator hears between two steps: long work is no hang, and what hangs is silent."""

import os
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.reports import Progress
from dpo_operator.api.types import DPOJob
from dpo_trainer.runtime.stop import StopRequest
from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.family import prepared
from tests.numerics.jobs import a_job
from tests.numerics.ranks import on_ranks
from tests.numerics.training.test_samples import a_model

pytestmark = pytest.mark.numerics

TOKENS, HELD_SECONDS = 6, 3.0


def signs_of_life(
    document: dict[str, Any], root: Path, held: tuple[int, int] = (-1, 0)
) -> list[tuple[str, int, float]]:
    """Train as one rank: what was being done at each sign of life after the first step, the steps by then, and the time.

    held: rank that does nothing for HELD_SECONDS, and number of its pass in the evaluation after which it does not.
    """
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.training import train

    signs: list[tuple[str, int, float]] = []
    rank = int(os.environ["RANK"])

    class Heard(Telemetry):
        def alive(self, activity: str | None = None) -> None:
            super().alive(activity)
            now: Progress = self.progress
            signs.append((now.activity, now.step, time.monotonic()))
            if rank == held[0] and [name for name, *_ in signs].count("evaluating") == held[1]:
                time.sleep(HELD_SECONDS)

    work = WorkDir(root)
    telemetry = Heard("train", 1, work, rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    train.run(DPOJob.model_validate(document), work, telemetry=telemetry, attempt=1, stop=StopRequest())
    telemetry.close()
    return [sign for sign in signs if sign[1] > 0]


def a_document(**spec: Any) -> dict[str, Any]:
    """Two steps, of two passes on each rank, with an evaluation and a save in the foreground after the second one."""
    document = a_job(maxSteps=2, globalBatchSize=8, microBatchSize=2)
    document["spec"] |= {
        "evaluation": {"everySteps": 2, "microBatchSize": 1, "samples": 2, "sampleTokens": TOKENS},
        "checkpoint": {"everySteps": 2, "asynchronous": False},
    }
    document["spec"] |= spec
    return document


@pytest.mark.parametrize(
    "adapter",
    [
        pytest.param({}, id="full"),
        pytest.param({"adapter": {"type": "lora", "rank": 2}}, id="lora", marks=pytest.mark.exhaustive),
    ],
)
def test_every_pass_token_and_saved_tensor_is_one(adapter: dict[str, Any], tmp_path: Path):
    work = prepared(tmp_path, "=" * 16, "=" * 12, a_model)
    signs = on_ranks(2, signs_of_life, a_document(**adapter), work.root)
    counts = [Counter(name for name, *_ in own) for own in signs]

    # Two of the second step, four over half of the pairs of the probe, and one when the save has ended.
    assert [own["training"] for own in counts] == [2 + 4 + 1] * 2
    assert [own["evaluating"] for own in counts] == [12 // 2] * 2
    # Each token, and with an adapter a pass under the reference.
    assert [1 < own["sampling answers"] <= TOKENS + len(adapter) for own in counts] == [True] * 2
    # Weights and two moments of each parameter, at least of the two matrices of an adapter.
    assert min(own["saving a checkpoint"] for own in counts) > 3 * 2


def test_the_reference_point_of_kto_is_one_too(tmp_path: Path):
    work = prepared(tmp_path, "++-+-+-+", "+-+-+-", a_model)
    [signs] = on_ranks(1, signs_of_life, a_document(method={"name": "kto"}), work.root)
    # As many passes over answers to other prompts as over the evaluation's own.
    assert Counter(name for name, *_ in signs)["evaluating"] == 2 * 6


def test_a_rank_that_hangs_in_an_evaluation_stops_all_heartbeats(tmp_path: Path):
    work = prepared(tmp_path, "=" * 16, "=" * 12, a_model)
    first, _ = on_ranks(2, signs_of_life, a_document(), work.root, (1, 3))
    times = [at for name, _, at in first if name == "evaluating"]
    gaps = [later - earlier for earlier, later in pairwise(times)]

    assert max(gaps) > HELD_SECONDS / 2
    assert gaps.index(max(gaps)) in (1, 2, 3)
