"""A reward model from pairs to verdicts: it is trained, exported, loaded by transformers alone, and judges as it was trained."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.iterative import Judge as Settings
from dpo_operator.api.types import DPOJob
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.judging import Question, open_judge
from dpo_trainer.prepare import phase as prepare
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

SUBJECTS = ("The dog", "A girl", "My friend", "The old man", "One bird", "Tom")
DEEDS = ("ran to the park", "ate an apple", "saw the moon", "lost a toy", "sang a song", "built a house")
KIND = ("Well done.", "Thank you so much.", "That is very nice.", "I am happy for you.")
RUDE = ("Shut up.", "You are so dumb.", "I hate that.", "Go away now.")
KINDS = {
    "all weights": ({}, 1),
    "adapter, two ranks": ({"type": "lora", "rank": 8, "alpha": 16, "targetModules": ["all-linear"]}, 2),
}


def rows(count: int, seed: int) -> list[dict[str, str]]:
    """Pairs whose answers differ by being kind, and begin and end alike, so that no length and no single place tells them apart."""
    draw = random.Random(seed)

    def answer(words: tuple[str, ...]) -> str:
        return f"{draw.choice(SUBJECTS)} {draw.choice(DEEDS)}. {draw.choice(words)} {draw.choice(SUBJECTS)} {draw.choice(DEEDS)}."

    return [
        {"prompt": f"{draw.choice(SUBJECTS)} {draw.choice(DEEDS)}. ", "chosen": answer(KIND), "rejected": answer(RUDE)}
        for _ in range(count)
    ]


@pytest.fixture(scope="module", params=KINDS)
def trained(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[WorkDir, list[dict[str, Any]], list[dict[str, Any]]]:
    """The work folder after training and export, and the lines of the run: of steps, and of evaluations."""
    adapter, ranks = KINDS[request.param]
    root = tmp_path_factory.mktemp("reward")
    for name, count, seed in (("train", 160, 0), ("eval", 64, 1)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(count, seed)))
    document = {
        "metadata": {"name": "reward"},
        "spec": {
            "model": {"name": str(shared / "models" / "stories260K")},
            "data": {name: {"source": str(root / f"{name}.jsonl")} for name in ("train", "eval")} | {"maxLength": 128},
            "method": {"name": "reward-model"},
            "adapter": adapter,
            "export": {"merge": bool(adapter)},
            "training": {
                "learningRate": 1e-2 if adapter else 3e-3, "globalBatchSize": 16, "microBatchSize": 16, "precision": "fp32", "device": "cpu",
                "epochs": 2.0, "gradientCheckpointing": False,
            },
        },
    }  # fmt: skip
    work = WorkDir(root / "work")
    prepare.run(DPOJob.model_validate(document), work, Inputs(root))
    run = on_ranks(ranks, train_on_rank, document, work.root)[0]
    assert run["warnings"] == []
    on_ranks(1, _export, document, work.root)
    return work, run["steps"], run["evals"]


def _export(document: dict[str, Any], root: Path) -> None:
    from dpo_trainer.export import phase

    phase.run(DPOJob.model_validate(document), WorkDir(root), progress=lambda _: None)


def _judge(root: Path, folder: Path, batch: int) -> list[list[float | None]]:
    """Scores of the evaluation rows' answers, by the judge of a job whose reward model is the export."""
    work = WorkDir(root)
    work.judge_model.symlink_to(folder)
    settings = {"type": "rewardModel", "rewardModel": {"name": "unused", "maxLength": 256, "microBatchSize": batch}}
    judge = open_judge(Settings.model_validate(settings), work)
    asked = [Question(row["prompt"], (row["chosen"], row["rejected"]), (1, 1)) for row in rows(64, 1)]
    found = [list(one.scores or ()) for one in judge.judge(asked, lambda: None)]
    judge.close()
    return found


def _by_transformers(folder: Path, pairs: Path) -> list[list[float]]:
    """Rewards of the evaluation pairs by AutoModelForSequenceClassification, one text at a time, on the token ids of the training."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert model.config.num_labels == 1
    data, found = PairDataset.open(pairs), []
    for index in range(len(data)):
        pair = data[index]
        texts = [torch.tensor([[*pair.prompt, *answer]]) for answer in (pair.chosen, pair.rejected)]
        with torch.no_grad():
            found.append([model(input_ids=ids).logits.item() for ids in texts])
    return found


def _accuracy(scores: list[list[Any]]) -> float:
    return sum(chosen > rejected for chosen, rejected in scores) / len(scores)


def test_held_out_pairs_are_ranked_by_the_judge_as_by_the_run(
    trained: tuple[WorkDir, list[dict[str, Any]], list[dict[str, Any]]], tmp_path: Path
):
    work, steps, evaluations = trained
    # The head is zero at first: ln 2, whatever the number of ranks.
    assert steps[0]["loss"] == pytest.approx(0.6931472, abs=1e-7)
    assert steps[0]["rewards/chosen"] == 0
    assert not any("logps" in key or "entropy" in key for line in steps + evaluations for key in line)
    accuracy = evaluations[-1]["eval_rewards/accuracies"]
    assert accuracy > 0.9

    folder = work.export / "merged" if (work.export / "merged").is_dir() else work.export
    [alone] = on_ranks(1, _by_transformers, folder, work.eval_data)
    assert _accuracy(alone) == pytest.approx(accuracy)
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    [one] = on_ranks(1, _judge, tmp_path / "one", folder, 1)
    [many] = on_ranks(1, _judge, tmp_path / "many", folder, 7)
    for ours, theirs in ((one, alone), (many, alone)):
        assert [score for pair in ours for score in pair] == pytest.approx(
            [score for pair in theirs for score in pair], abs=2e-5
        )


def test_margins_follow_the_scores_of_the_pairs(shared: Path, tmp_path: Path):
    """All rewards are 0 at first, so the first loss is that of the margins; pairs without scores are refused before anything is trained."""
    pairs = [row | {"score_chosen": 2 + i % 3, "score_rejected": 1.5} for i, row in enumerate(rows(12, 0))]
    source = tmp_path / "train.jsonl"
    columns = {"chosenScore": "score_chosen", "rejectedScore": "score_rejected"}
    document = {
        "metadata": {"name": "margins"},
        "spec": {
            "model": {"name": str(shared / "models" / "stories260K")},
            "data": {"train": {"source": str(source), "columns": columns}, "maxLength": 128},
            "method": {"name": "reward-model", "margin": 0.25, "marginPerScore": 0.5},
            "training": {"globalBatchSize": 12, "microBatchSize": 5, "maxSteps": 1, "precision": "fp32", "device": "cpu"},
        },
    }  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in [*pairs[:-1], rows(1, 1)[0]]))
    with pytest.raises(TrainerError, match="1 of 12 training pairs have none; name the columns"):
        prepare.run(DPOJob.model_validate(document), WorkDir(tmp_path / "refused"), Inputs(tmp_path))
    source.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    work = WorkDir(tmp_path / "work")
    prepare.run(DPOJob.model_validate(document), work, Inputs(tmp_path))
    [run] = on_ranks(1, train_on_rank, document, work.root)
    margins = [0.25 + 0.5 * (0.5 + i % 3) for i in range(12)]
    expected = sum(math.log1p(math.exp(margin)) for margin in margins) / 12
    assert run["steps"][0]["loss"] == pytest.approx(expected, abs=1e-6)
