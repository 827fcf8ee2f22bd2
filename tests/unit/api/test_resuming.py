"""What a run that was begun may change."""

from typing import Any

import pytest

from dpo_operator.api.rules.resuming import (
    NEUTRAL_CHECKPOINT,
    NEUTRAL_EVALUATION,
    NEUTRAL_TRAINING,
    changed,
)
from dpo_operator.api.training import Checkpoint, Evaluation, Training

pytestmark = pytest.mark.unit

BEFORE: dict[str, Any] = {
    "model": {"name": "m"}, "nodes": 2, "training": {"seed": 7, "microBatchSize": 2}, "checkpoint": {"keepLast": 5},
}  # fmt: skip


@pytest.mark.parametrize(
    "now",
    [
        {"nodes": 1}, {"gpusPerNode": 4}, {"suspend": True}, {"pod": {"env": []}}, {"failurePolicy": {"maxRestarts": 1}},
        {"checkpoint": {"everySteps": 1, "keepLast": 1, "keepBest": 0, "async": False, "volume": {"size": "1Gi"}}},
        {"checkpoint": {}}, {"training": {"seed": 7, "microBatchTokens": 64, "offload": "cpu", "logEverySteps": 3}},
        {"evaluation": {"samples": 4, "sampleTokens": 8}}, {"diagnosis": {"stopOn": ["Gibberish"]}},
    ],
)  # fmt: skip
def test_what_decides_no_number_may_change(now: dict[str, Any]):
    assert changed(BEFORE, BEFORE | now) == []


@pytest.mark.parametrize(
    ("now", "paths"),
    [
        ({"training": {"seed": 8}}, ["spec.training.seed"]),
        ({"training": {"packing": False, "globalBatchSize": 4}}, ["spec.training.globalBatchSize", "spec.training.seed"]),
        ({"model": {"name": "n"}, "nodes": 1}, ["spec.model"]),
        ({"checkpoint": {"requireRecordedDigest": True}}, ["spec.checkpoint.requireRecordedDigest"]),
        ({"evaluation": {"everySteps": 3, "samples": 4}}, ["spec.evaluation.everySteps"]),
    ],
)  # fmt: skip
def test_what_decides_them_may_not(now: dict[str, Any], paths: list[str]):
    assert changed(BEFORE, BEFORE | now) == paths


def test_rounds_may_grow_and_nothing_else_of_them():
    judge = {"type": "builtin", "builtin": {"name": "length", "tokens": 5}}
    begun = BEFORE | {"iterative": {"judge": judge}}
    assert changed(begun, begun | {"iterative": {"judge": judge, "rounds": 4}}) == []
    assert changed(begun, begun | {"iterative": {"judge": judge, "rounds": 2}}) == ["spec.iterative.rounds"]
    assert changed(begun, begun | {"iterative": {"judge": judge, "mixOffline": 0.5}}) == ["spec.iterative.mixOffline"]
    assert changed(BEFORE, begun) == changed(begun, BEFORE) == ["spec.iterative.judge"]


def test_the_names_are_those_of_settings():
    parts = ((Training, NEUTRAL_TRAINING), (Checkpoint, NEUTRAL_CHECKPOINT), (Evaluation, NEUTRAL_EVALUATION))
    for model, settings in parts:
        assert settings <= model.model_json_schema(by_alias=True)["properties"].keys()
