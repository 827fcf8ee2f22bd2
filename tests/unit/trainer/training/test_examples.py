"""What a run opens: the pairs of both splits, other prompts' answers where KTO needs them, and refusals of what can't be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.method import Method
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.losses.objective import Objective
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.training.examples import Examples, open_examples, read_sources
from tests.unit.trainer.place import Place, rows
from tests.unit.trainer.tiny import write_jsonl

pytestmark = pytest.mark.unit

PAIRED = [([1], [2], [3]), ([4], [5, 6], [7])]
UNPAIRED = [([1], [2], []), ([4], [], [7])]
ONE_PROMPT = [([1], [2], [3]), ([1], [5], [])]


def objective(name: str = "dpo", **settings: Any) -> Objective:
    return Objective(Method.model_validate({"name": name, **settings}))


def data(pairs: list[tuple[list[int], list[int], list[int]]]) -> PairDataset:
    return PairDataset.from_pairs(
        TokenPair(*(np.array(part, dtype=np.int32) for part in pair), row=row) for row, pair in enumerate(pairs)
    )


def a_folder(root: Path, train: list, evaluation: list | None = None) -> WorkDir:
    work = WorkDir(root)
    data(train).save(work.train_data)
    if evaluation is not None:
        data(evaluation).save(work.eval_data)
    return work


def refusal(work: WorkDir, wanted: Objective) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        open_examples(work, wanted)
    return caught.value


def test_both_splits_are_opened(tmp_path: Path):
    train, evaluation = open_examples(a_folder(tmp_path, PAIRED, PAIRED[:1]), objective())
    assert evaluation is not None
    assert (train.name, len(train.data), evaluation.name, len(evaluation.data)) == ("training", 2, "evaluation", 1)
    assert train.mismatched is None


@pytest.mark.parametrize("evaluation", [None, []], ids=["no folder", "no pairs"])
def test_evaluation_pairs_may_be_missing(tmp_path: Path, evaluation: list | None):
    train, found = open_examples(a_folder(tmp_path, PAIRED, evaluation), objective())
    assert len(train.data) == 2
    assert found is None


def test_training_pairs_may_not_be_missing(tmp_path: Path):
    error = refusal(a_folder(tmp_path, []), objective())
    assert error.exit_code is ExitCode.BAD_DATASET
    assert "expected at least one training pair, found none" in str(error)
    assert refusal(WorkDir(tmp_path / "nothing"), objective()).exit_code is ExitCode.VOLUME_ERROR


@pytest.mark.parametrize("evaluation", [UNPAIRED, PAIRED], ids=["unpaired", "paired"])
def test_kto_takes_unpaired_answers_and_pairs(tmp_path: Path, evaluation: list):
    train, held_out = open_examples(a_folder(tmp_path, UNPAIRED, evaluation), objective("kto"))
    assert held_out is not None
    for split in (train, held_out):
        assert split.mismatched is not None
        assert len(split.mismatched) == len(split.data)
        assert split.mismatched[0].prompt.tolist() == split.data[0].prompt.tolist()


@pytest.mark.parametrize("name", ["dpo", "orpo"])
@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_every_other_loss_refuses_answers_without_a_counterpart(tmp_path: Path, name: str, split: str):
    both = {"training": PAIRED, "evaluation": PAIRED, split: [*PAIRED, *UNPAIRED]}
    error = refusal(a_folder(tmp_path, both["training"], both["evaluation"]), objective(name))
    assert error.exit_code is ExitCode.INVALID_CONFIGURATION
    assert str(error).startswith("spec.method.name: ")
    assert f"{name} compares two answers, and 2 of 4 {split} examples have only one; use kto" in str(error)


@pytest.mark.parametrize(("train", "evaluation"), [(ONE_PROMPT, None), (PAIRED, ONE_PROMPT), (PAIRED[:1], None)])
def test_kto_refuses_data_with_a_single_prompt(tmp_path: Path, train: list, evaluation: list | None):
    work = a_folder(tmp_path, train, evaluation)
    error = refusal(work, objective("kto"))
    assert error.exit_code is ExitCode.INVALID_CONFIGURATION
    assert "the same prompt; use another method, or more prompts" in str(error)
    # The other losses do not ask for other prompts.
    if train is PAIRED[:1]:
        assert len(open_examples(work, objective())[0].data) == 1


def test_reference_log_probs_are_asked_for_whatever_a_loss_will_score():
    asked: list[tuple[str, int]] = []

    def table(what: str, pairs: PairDataset) -> torch.Tensor:
        asked.append((what, len(pairs)))
        return torch.full((len(pairs), 2, 2), float(len(asked)), dtype=torch.float64)

    paired = Examples("training", data(PAIRED))
    paired.add_reference(table)
    assert paired.reference is not None
    assert paired.mismatched_reference is None
    kto = Examples("evaluation", data(PAIRED), data(PAIRED))
    kto.add_reference(table)
    assert asked == [
        ("the training pairs", 2),
        ("the evaluation pairs", 2),
        ("the evaluation prompts with other answers", 2),
    ]
    assert kto.reference is not None
    assert kto.mismatched_reference is not None
    assert (kto.reference[0, 0, 0].item(), kto.mismatched_reference[0, 0, 0].item()) == (2.0, 3.0)


def test_each_pair_of_a_mixture_knows_its_source(tmp_path: Path):
    place = Place(tmp_path)
    other = write_jsonl(place.root / "other.jsonl", rows(9, rejected=" not at all, as it seems"))
    mixture = {"mixture": [{"source": str(other), "weight": 1.5}], "evalFraction": 0.2}
    place.run(**mixture)
    found = read_sources(place.job(**mixture).spec, place.work)
    for name, folder in (("training", place.work.train_data), ("evaluation", place.work.eval_data)):
        examples = Examples(name, PairDataset.open(folder), sources=found[name])
        numbers = examples.source(torch.arange(len(examples.data)), torch.device("cpu"))
        assert numbers is not None
        of_other = [len(examples.data[i].rejected) > 10 for i in range(len(examples.data))]
        assert numbers.tolist() == [int(other) for other in of_other]
        assert 0 < sum(of_other) < len(of_other)


def test_one_source_and_an_unknown_one_are_not_told_apart(tmp_path: Path):
    place = Place(tmp_path)
    assert read_sources(place.job().spec, place.work) == {}
    assert read_sources(place.job(mixture=[{"source": "m"}]).spec, place.work) == {}
    assert Examples("training", data(PAIRED)).source(torch.tensor([0]), torch.device("cpu")) is None
