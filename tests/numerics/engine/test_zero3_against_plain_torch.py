"""ZeRO-3 on one and on two gloo ranks trains like a plain loop in one process: losses, rewards, weights."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import a_job, make_model, plain_training, some_pairs, train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

# 37 pairs in steps of 8: the fifth step of each epoch has 5 pairs, an odd number for two ranks.
PAIRS, STEPS = 37, 20
LORA = {"type": "lora", "rank": 4, "alpha": 16, "targetModules": ["q_proj", "v_proj", "down_proj"]}


def prepared(root: Path, *, tied: bool) -> WorkDir:
    work = WorkDir(root)
    some_pairs(PAIRS).save(work.train_data)
    on_ranks(1, _make_model, work.model, tied)
    return work


def _make_model(folder: Path, tied: bool) -> None:
    make_model(folder, tied=tied)


def _final_weights(root: Path) -> dict[str, np.ndarray]:
    from dpo_trainer.checkpoint.full import open_newest

    found, _ = open_newest(WorkDir(root).checkpoints)
    return {name: found.tensor(name).numpy() for name in found.manifest.parameters}


# CI has each pair of values once.
CASES = [
    pytest.param(
        *case,
        id="-".join(("full" if case[0] is None else "lora", "checkpointing" if case[1] else "plain", str(case[2]))),
        marks=() if ((case[0] is not None) + case[1] + case[2]) % 2 == 0 else pytest.mark.exhaustive,
    )
    for case in itertools.product((None, LORA), (False, True), (1, 2))
]


@pytest.mark.parametrize(("adapter", "recompute", "world_size"), CASES)
def test_training_equals_a_plain_loop(tmp_path: Path, world_size: int, recompute: bool, adapter: dict | None):
    work = prepared(tmp_path, tied=adapter is None and recompute)
    document = a_job(maxSteps=STEPS, gradientCheckpointing=recompute)
    if adapter:
        document["spec"]["adapter"] = adapter
        document["spec"]["training"]["learningRate"] = 2e-2
    got = on_ranks(world_size, train_on_rank, document, tmp_path)[0]["steps"]
    [expected] = on_ranks(1, plain_training, copy.deepcopy(document), work.model, some_pairs(PAIRS), STEPS)

    assert len(got) == STEPS
    for line, plain in zip(got, expected["steps"], strict=True):
        for key, value in plain.items():
            # Nothing is learnt before the third step (the warm-up's first rate is 0), so accuracy counts rounding errors.
            if key == "rewards/accuracies" and line["step"] <= 2:
                continue
            assert line[key] == pytest.approx(value, abs=1e-4, rel=1e-4), (line["step"], key)
    # The comparison means something only if the loss moved.
    assert got[-1]["loss"] < got[0]["loss"] - 0.05
    [weights] = on_ranks(1, _final_weights, tmp_path)
    assert weights.keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        np.testing.assert_allclose(weights[name], value, atol=2e-4, err_msg=name)
