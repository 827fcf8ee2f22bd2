"""A reward model that judges rounds: fetched, recorded, and refused when it can't judge."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.types import DPOJob
from dpo_trainer.prepare import phase as prepare
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.prepare.record import Prepared
from dpo_trainer.runtime.errors import TrainerError
from tests.unit.trainer.place import Place
from tests.unit.trainer.tiny import tiny_model

pytestmark = pytest.mark.unit

CLASSIFIER = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}


def with_tensors(folder: Path, **tensors: np.ndarray) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | {name.replace("_weight", ".weight"): value for name, value in tensors.items()}, file)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    """A reward model with one output."""
    folder = tiny_model(tmp_path / "judge", config=CLASSIFIER)
    with_tensors(folder, score_weight=np.ones((1, 4), np.float32))
    return folder


def job(place: Place, judge: Path, **reward_model: Any) -> DPOJob:
    document = place.job().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    document["spec"]["iterative"] = {
        "judge": {"type": "rewardModel", "rewardModel": {"name": str(judge), "maxLength": 512, **reward_model}},
        "rounds": 1,
        "winRate": {"prompts": 0},
    }
    return DPOJob.model_validate(document)


def refused(place: Place, judge: Path, **reward_model: Any) -> str:
    with pytest.raises(TrainerError) as failure:
        prepare.run(job(place, judge, **reward_model), place.work, Inputs(place.root))
    assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION
    assert not place.work.prepared.exists()
    return str(failure.value)


def test_it_is_fetched_and_recorded(place: Place, judge: Path) -> None:
    prepare.run(job(place, judge), place.work, Inputs(place.root))
    made = Prepared.read(place.work)
    assert {file.name for file in place.work.judge_model.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert made.judge_model is not None
    assert made.judge_model.source == str(judge)
    assert "model.safetensors" in made.originals["judge"]
    # Another run finds it; a change of the source, or of what was fetched, is noticed.
    before = place.work.prepared.stat().st_mtime_ns
    prepare.run(job(place, judge), place.work, Inputs(place.root))
    assert place.work.prepared.stat().st_mtime_ns == before
    (place.work.judge_model / "config.json").write_text("{}")
    prepare.run(job(place, judge), place.work, Inputs(place.root))
    assert place.work.prepared.stat().st_mtime_ns != before
    with_tensors(judge, score_weight=np.full((1, 4), 2, np.float32))
    digest = made.judge_model.weights
    prepare.run(job(place, judge), place.work, Inputs(place.root))
    assert Prepared.read(place.work).judge_model.weights != digest  # type: ignore[union-attr]


def test_a_job_without_it_has_the_record_that_it_always_had(place: Place) -> None:
    place.run()
    assert "judge_model" not in place.made
    assert not place.work.judge_model.exists()


def test_a_random_head_is_refused(place: Place, tmp_path: Path) -> None:
    bare = tiny_model(tmp_path / "bare", config=CLASSIFIER)
    assert "the weights have no trained head (score.weight), and a random one would judge at random" in refused(
        place, bare
    )


def test_several_outputs_are_refused(place: Place, judge: Path) -> None:
    with_tensors(judge, score_weight=np.ones((2, 4), np.float32))
    assert "score.weight has 2 outputs, and a reward is one number" in refused(place, judge)


def test_a_language_model_is_refused(place: Place) -> None:
    text = refused(place, place.model)
    assert (
        "expected a reward model, which is a sequence classifier (LlamaForSequenceClassification), found LlamaForCausalLM"
        in text
    )


def test_code_of_its_own_is_refused(place: Place, judge: Path) -> None:
    config = json.loads((judge / "config.json").read_text())
    (judge / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModelForSequenceClassification": "rm.RM"}})
    )
    assert "asks for code of its own (auto_map)" in refused(place, judge)


def test_a_classifier_on_an_encoder_is_refused(place: Place, tmp_path: Path) -> None:
    folder = tiny_model(
        tmp_path / "encoder", config={"architectures": ["BertForSequenceClassification"], "model_type": "bert"}
    )
    with_tensors(folder, classifier_weight=np.ones((1, 4), np.float32))
    assert "found classifier.weight, that of a classifier on an encoder" in refused(place, folder)


def test_more_tokens_than_it_has_positions_are_refused(place: Place, judge: Path) -> None:
    assert "maxLength is 5000, and" in refused(place, judge, maxLength=5000)


def test_an_adapter_alone_is_refused(place: Place, tmp_path: Path, judge: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(judge, folder)
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "expected a whole model, found an adapter alone" in refused(place, folder)


def test_a_model_without_a_classifier_can_not_become_one(place: Place, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", config={"architectures": ["CohereForCausalLM"], "model_type": "cohere"})
    text = place.refused(ExitCode.INVALID_CONFIGURATION, model={"name": str(other)}, method="reward-model")
    assert "transformers has none for model_type 'cohere'; use another model" in text
