"""Identity of a run: the settings that must match."""

import pytest

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.checkpoint.identity import differences, identity

pytestmark = pytest.mark.unit


def test_identity_has_exactly_the_settings_that_affect_results():
    def spec(**training: object) -> DPOJobSpec:
        return DPOJobSpec.model_validate(
            {"model": {"name": "m"}, "data": {"train": {"source": "d"}}, "training": training}
        )

    same = identity(spec(), dataset="x")
    assert differences(same, identity(spec(microBatchSize=4, logEverySteps=9, device="cpu"), dataset="x")) == []
    assert differences(same, identity(spec(learningRate=5e-7), dataset="x")) == []  # the default, written out
    assert differences(same, identity(spec(seed=1), dataset="y")) == [
        "dataset: the checkpoint has 'x', the job 'y'",
        "spec.training.seed: the checkpoint has the default, the job 1",
    ]


def test_a_setting_that_a_later_version_adds_keeps_checkpoints_usable():
    job = {"model": {"name": "m"}, "data": {"train": {"source": "d"}, "eval": {"source": "e"}}}
    saved = identity(DPOJobSpec.model_validate(job), dataset="x")
    # Settings with their default are not written, so a setting that did not exist yet looks the same.
    assert not any("truncation" in path or "weight" in path or "columns" in path for path in saved)
    job["data"]["truncation"] = "keep_end"
    job["method"] = {"beta": 0.1}
    assert differences(saved, identity(DPOJobSpec.model_validate(job), dataset="x")) == []
    job["method"] = {"beta": 0.2}
    assert differences(saved, identity(DPOJobSpec.model_validate(job), dataset="x")) == [
        "spec.method.beta: the checkpoint has 0.1, the job 0.2"
    ]
