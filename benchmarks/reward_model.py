"""Reward models on pairs with a plain preference, and what they say as judges: `make bench-reward-model`, or `python -m benchmarks.reward_model`.

Each is a DPOJob with `method: reward-model` through the product's own prepare, train and export; the judge of rounds then loads the export and scores the
held-out answers as texts. benchmarks/README.md has the last table and its discussion.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.methods import REPOSITORY, add_inputs
from benchmarks.runs import Dataset, Failed, RunMetrics, prepare, run_phase, take_apart, train
from dpo_operator.api.data import Template
from dpo_operator.api.iterative import RewardModel as Settings
from dpo_trainer.runtime.workdir import WorkDir

DATASET = Dataset("polite_rude", ".", eval_fraction=0.2, max_length=512, learning_rate=1e-3)
# Held-out pairs that the best model must rank right.
BAR = 0.9
VOCABULARY, HIDDEN, LAYERS = 3000, 128, 2


@dataclass(frozen=True)
class Row:
    """A base model and how it is trained. own: made on the spot, with a vocabulary of the training texts and random weights."""

    name: str
    own: bool
    learning_rate: float
    epochs: float
    weight_decay: float = 0.0


ROWS = (
    Row("stories260K, 1 epoch", False, 1e-3, 1.0),
    Row("stories260K, 4 epochs", False, 3e-3, 4.0),
    Row("words of the data, 6 epochs", True, 1e-3, 6.0, 0.1),
)


@dataclass(frozen=True)
class Result:
    """What a reward model is worth. judged: share of the held-out pairs that it ranks right as the judge of rounds, from their texts."""

    row: Row
    seed: int
    metrics: RunMetrics
    judged: float


def document(row: Row, model: Path, data: dict[str, Any], seed: int) -> dict[str, Any]:
    """The DPOJob of a row."""
    return {
        "metadata": {"name": "reward"},
        "spec": {
            "model": {"name": str(model)}, "data": data, "method": {"name": "reward-model"},
            "training": {
                "learningRate": row.learning_rate, "epochs": row.epochs, "globalBatchSize": 16, "microBatchSize": 16, "precision": "fp32",
                "gradientCheckpointing": False, "device": "cpu", "seed": seed, "weightDecay": row.weight_decay,
            },
            "evaluation": {"everySteps": 1_000_000},  # the last step is evaluated whatever this says
            "checkpoint": {"everySteps": 1_000_000, "keepLast": 1, "keepBest": 0},
            "gpusPerNode": 0,
        },
    }  # fmt: skip


def make_model(corpus: Sequence[str], folder: Path, seed: int) -> None:
    """Write a small Llama with random weights and a byte-level BPE vocabulary of some texts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", model_max_length=512)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN * 11 // 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def judged(export: Path, pairs: Path) -> float:
    """Share of pairs that the judge of rounds ranks right with an export as its model. pairs: JSON lines."""
    from dpo_trainer.judging import Question
    from dpo_trainer.judging.reward_model import RewardModelJudge

    judge = RewardModelJudge(Settings(name="export", max_length=512, gpus=0), export, Template())
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    asked = [Question(row["prompt"], (row["chosen"], row["rejected"]), (1, 1)) for row in rows]
    found = judge.judge(asked, lambda: None)
    judge.close()
    return sum(one.best == 0 for one in found) / len(found)


def run(row: Row, arguments: argparse.Namespace, seed: int) -> Result:
    """Train a row's reward model, export it, and have it judge. Raises Failed."""
    source, folder = arguments.data / DATASET.name, arguments.work_dir / f"{ROWS.index(row)}-{seed}"
    data = DATASET.paired(source, arguments.limit)
    # The vocabulary comes from the training pairs alone, and which these are is known once they are prepared.
    first = prepare(document(row, arguments.model, data, seed), folder / "first")
    take_apart(DATASET, source, first, folder / "apart")
    model, prepared = arguments.model, first
    if row.own:
        model = folder / "model"
        make_model([*_texts(folder / "apart" / "train.jsonl")], model, seed)
        prepared = prepare(document(row, model, data, seed), folder / "prepared")
    job, work = document(row, model, data, seed), folder / "work"
    metrics = train(job, prepared, work)
    shutil.rmtree(work / "export", ignore_errors=True)
    run_phase("export", job, work)
    return Result(row, seed, metrics, judged(WorkDir(work).export, folder / "apart" / "eval.jsonl"))


def _texts(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row["prompt"] + row["completion"]


def table(results: Sequence[Result]) -> Table:
    """The results for people."""
    made = Table(
        title="Reward models on polite_rude", caption="± one standard error; held-out pairs that are ranked right"
    )
    for name in ("model", "seed", "lr", "steps", "in training", "as a judge", "length alone"):
        made.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for each in results:
        metrics = each.metrics
        made.add_row(
            each.row.name,
            str(each.seed),
            f"{each.row.learning_rate:.0e}",
            str(metrics.steps),
            f"{metrics.accuracy:.3f} ± {metrics.error:.3f}",
            f"{each.judged:.3f}",
            f"{metrics.baseline:.3f}",
        )
    return made


def main() -> int:
    """Run all rows and print the table; 1 when no model is above the bar in the mean over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_inputs(parser, ["polite_rude/"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", type=int, nargs="+", default=list(range(len(ROWS))), help="numbers of lines, from 0")
    parser.add_argument("--limit", type=int, help="only the first rows of the data")
    parser.add_argument("--work-dir", type=Path, default=REPOSITORY / "runs" / "bench-reward-model")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    console = Console(width=110)
    try:
        results = [run(ROWS[number], arguments, seed) for number in arguments.rows for seed in arguments.seeds]
    except Failed as error:
        console.print(str(error), style="red", markup=False)
        return 1
    console.print(table(results))
    means = [
        sum(each.judged for each in results if each.row is row) / len(arguments.seeds)
        for row in {each.row for each in results}
    ]
    console.print(f"best mean: {max(means):.3f}, and above {BAR} is asked for")
    return int(max(means) <= BAR)


if __name__ == "__main__":
    sys.exit(main())
