"""Which pairs are worth training on, with clean and with flipped labels: `make bench-selection`, or `python -m benchmarks.selection`.

Pairs are the best and the worst of four answers of the model itself by a known reward, as in benchmarks.rounds; of some arms a quarter of the pairs is
turned around. After a warm-up on a third of the pairs, arms train on equally many others. All of it goes through the product's own phases.
benchmarks/README.md has the last table and its discussion.
"""

import argparse
import json
import math
import os
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.rounds import ANSWER_TOKENS, REWARD, write_prompts
from benchmarks.runs import Failed, prepare, run_phase, train
from dpo_operator.api import names
from dpo_operator.api.iterative import Builtin
from dpo_operator.api.trainingparts.selection import Selection
from dpo_trainer.batches import rankings
from dpo_trainer.batches.sampler import StepPlan
from dpo_trainer.batches.selected import SelectedPlan
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import read_metrics

REPOSITORY = Path(__file__).resolve().parents[1]
BATCH, SAMPLES, EVALUATED, ASKED, MIN_GAP = 16, 4, 300, 256, 1.0
NOISE = (0.0, 0.25)
WARMUP = 1 / 3
# By name: what is kept of what the warm-up left; None trains on random pairs.
ARMS: dict[str, dict[str, Any] | None] = {
    "random": None,
    "hard": {"by": "rewardGap", "keep": {"quantiles": [0.0, 0.5]}},
    "trimmed": {"by": "rewardGap", "keep": {"quantiles": [0.333, 1.0]}},
    "easy": {"by": "rewardGap", "keep": {"quantiles": [0.5, 1.0]}},
    "all": None,
    "small gap": {"by": "absoluteRewardGap", "keep": {"quantiles": [0.0, 0.5]}},
    "none": None,
}
# A pass without gradients takes about a third of one with them.
FORWARD = 1 / 3


@dataclass(frozen=True)
class Result:
    """One arm of one seed. chosen: pairs after the warm-up; flipped: share of them that are turned around. rewards: of one answer to each prompt. kl: nats an answer, from
    the initial model. extra: computation of the ranking, as a share of the training's.
    """

    steps: int
    chosen: int
    flipped: float
    accuracy: float
    rewards: tuple[float, ...]
    kl: float
    extra: float


def document(arm: str, model: Path, data: Path, *, pairs: int, seed: int) -> dict[str, Any]:
    """The job of an arm. data: folder with train.jsonl and eval.jsonl. pairs: in train.jsonl."""
    half = Selection.model_validate({"by": "rewardGap", "warmup": WARMUP, "keep": {"quantiles": [0.0, 0.5]}})
    steps = half.steps(1.0, pairs, BATCH)
    most = {"none": half.warmup_pairs(pairs, BATCH) // BATCH, "random": steps, "trimmed": steps}.get(arm)
    selection = ARMS[arm]
    training = {
        "epochs": 1.0, "maxSteps": most, "globalBatchSize": BATCH, "microBatchSize": BATCH, "learningRate": 3e-4, "precision": "fp32", "device": "cpu",
        # So that all arms have the same policy after the warm-up.
        "scheduler": "constant", "warmupRatio": 0.0,
        "gradientCheckpointing": False, "seed": seed, "selection": None if selection is None else {"warmup": WARMUP} | selection,
    }  # fmt: skip
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "selection"},
        "spec": {
            "model": {"name": str(model)},
            "data": {"train": {"source": str(data / "train.jsonl")}, "eval": {"source": str(data / "eval.jsonl")}, "maxLength": 96},
            "method": {"name": "dpo", "beta": 0.1},
            "training": training,
            "evaluation": {"samples": 0, "everySteps": 1_000_000},
            "checkpoint": {"everySteps": 1_000_000, "keepLast": 1, "keepBest": 0},
            "gpusPerNode": 0,
        },
    }  # fmt: skip


class Sampler:
    """Answers of a policy to prompts, and what they are worth. A text is its prompt and its answer."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from dpo_trainer.judging.builtin import BuiltinJudge

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.initial = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
        self._judge = BuiltinJudge(Builtin.model_validate(REWARD))

    def answers(self, policy: Any, prompts: Sequence[str], seed: int) -> tuple[list[str], float]:
        """An answer to each prompt at temperature 1, and the KL divergence from the initial model that they show, nats an answer."""
        import torch

        torch.manual_seed(seed)
        texts, ratios = [], []
        ids = [self.tokenizer(text)["input_ids"] for text in prompts]
        found: dict[int, tuple[str, float]] = {}
        # Prompts of one length at a time: nothing is padded before an answer.
        for length in sorted({len(one) for one in ids}):
            some = [i for i, one in enumerate(ids) if len(one) == length]
            begin = torch.tensor([ids[i] for i in some])
            made = policy.generate(
                begin,
                attention_mask=torch.ones_like(begin),
                max_new_tokens=ANSWER_TOKENS,
                do_sample=True,
                top_k=0,
                pad_token_id=0,
            )
            counted = torch.cumsum((made[:, length:] <= 2).long(), dim=1)
            # The token that ends an answer counts, those after it don't.
            counts = (counted - (made[:, length:] <= 2).long()) == 0
            logps = [_logps(one, made, length) for one in (policy, self.initial)]
            ratio = ((logps[0] - logps[1]) * counts).sum(dim=1)
            for row, i in enumerate(some):
                whole = self.tokenizer.decode(made[row], skip_special_tokens=True)
                before = self.tokenizer.decode(begin[row], skip_special_tokens=True)
                found[i] = whole[len(before) :], float(ratio[row])
        for i in range(len(prompts)):
            texts.append(found[i][0])
            ratios.append(found[i][1])
        return texts, float(np.mean(ratios))

    def rewards(self, texts: Sequence[str]) -> list[float]:
        """The true reward of answers."""
        from dpo_trainer.judging import Question

        judged = self._judge.judge([Question("", (text, ""), (1, 1)) for text in texts], lambda: None)
        return [one.scores[0] for one in judged if one.scores is not None]


def _logps(model: Any, ids: Any, length: int) -> Any:
    """Log-probs of the tokens after the first `length`, [rows, tokens]."""
    import torch

    with torch.no_grad():
        logits = model(ids).logits[:, length - 1 : -1].log_softmax(-1)
    return logits.gather(2, ids[:, length:, None])[..., 0]


def write_data(sampler: Sampler, model: Path, folder: Path, *, pairs: int, seed: int) -> None:
    """Clean training pairs, evaluation pairs and prompts of a seed; and the training pairs with flipped ones for each noise."""
    asked = folder / "prompts.jsonl"
    if not asked.exists():
        write_prompts(model, asked, math.ceil(1.4 * (pairs + EVALUATED)) + ASKED, seed)
    prompts = [json.loads(line)["prompt"] for line in asked.read_text().splitlines()]
    rest, rows, drawn = prompts[ASKED:], [], 0
    while len(rows) < pairs + EVALUATED and rest:
        some, rest = rest[:512], rest[512:]
        answers = [
            sampler.answers(sampler.initial, some, seed + 1000 * (drawn := drawn + 1))[0] for _ in range(SAMPLES)
        ]
        scores = np.array([sampler.rewards(texts) for texts in answers])
        for i, prompt in enumerate(some):
            best, worst = int(scores[:, i].argmax()), int(scores[:, i].argmin())
            chosen, rejected = answers[best][i], answers[worst][i]
            if scores[best, i] - scores[worst, i] >= MIN_GAP and chosen.strip() and rejected.strip():
                rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    if len(rows) < pairs + EVALUATED:
        raise Failed(f"{folder}: expected {pairs + EVALUATED} pairs, found {len(rows)}")
    for noise in NOISE:
        turned = set(random.Random(seed).sample(range(pairs), round(noise * pairs)))
        made = data_folder(folder, noise)
        made.mkdir(parents=True, exist_ok=True)
        (made / "flipped.json").write_text(json.dumps(sorted(turned)))
        train_rows = [
            {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if i in turned else row
            for i, row in enumerate(rows[:pairs])
        ]
        for name, part in (("eval", rows[pairs : pairs + EVALUATED]), ("train", train_rows)):
            (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    # Last: with it the data of the seed are whole.
    (folder / "asked.json").write_text(json.dumps(prompts[:ASKED]))


def data_folder(folder: Path, noise: float) -> Path:
    """Data of a seed with a share of flipped labels."""
    return folder / f"noise-{noise:g}"


def result_file(arm: str, folder: Path, noise: float) -> Path:
    """Where an arm's result is kept."""
    return data_folder(folder, noise) / f"{arm.replace(' ', '-')}.json"


def read_result(arm: str, folder: Path, noise: float) -> Result | None:
    """The result of an earlier run; None without one."""
    path = result_file(arm, folder, noise)
    return Result(**json.loads(path.read_text())) if path.exists() else None


def chosen_pairs(job: dict[str, Any], work: WorkDir, pairs: int, steps: int) -> np.ndarray:
    """Pairs that a finished run trained on after the warm-up, each once."""
    training = job["spec"]["training"]
    warm = Selection(by="rewardGap", warmup=WARMUP).warmup_pairs(pairs, BATCH) // BATCH
    plan: StepPlan | SelectedPlan = StepPlan(pairs, BATCH, seed=training["seed"], shuffle=True)
    if training["selection"] is not None:
        kept = np.load(work.selection / "epoch-0.npy")
        selection = Selection.model_validate(training["selection"])
        plan = SelectedPlan(pairs, BATCH, selection, seed=training["seed"], shuffle=True, lists={0: kept})
    found = [plan.step(step) for step in range(warm + 1, steps + 1)]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)


def run_arm(arm: str, sampler: Sampler, model: Path, folder: Path, *, noise: float, pairs: int, seed: int) -> Result:
    """Train an arm. Raises Failed."""
    data = data_folder(folder, noise)
    work = WorkDir(data / arm.replace(" ", "-"))
    print(f"seed {seed}, {noise:.0%} flipped: {arm}", file=sys.stderr, flush=True)
    prepared = prepare(document("all", model, data, pairs=pairs, seed=seed), data / "prepared")
    count = json.loads((prepared.train_data / "meta.json").read_text())["pairs"]
    job = document(arm, model, data, pairs=count, seed=seed)
    metrics = train(job, prepared, work.root)
    run_phase("export", job, work.root)
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(work.export, dtype="float32").eval()
    texts, kl = sampler.answers(policy, json.loads((folder / "asked.json").read_text()), seed)
    chosen, turned = chosen_pairs(job, work, count, metrics.steps), json.loads((data / "flipped.json").read_text())
    source_rows = np.load(prepared.train_data / "rows.npy")[chosen]
    trained = [line["num_tokens"] for line in read_metrics(work.metrics) if line.get("num_tokens")][-1]
    ranked = sum(ranking.tokens for ranking in rankings.read_all(work.selection))
    result = Result(
        steps=metrics.steps,
        chosen=len(chosen),
        flipped=float(np.isin(source_rows, turned).mean()) if len(chosen) else 0.0,
        accuracy=metrics.accuracy,
        rewards=tuple(sampler.rewards(texts)),
        kl=kl,
        extra=FORWARD * ranked / trained,
    )
    result_file(arm, folder, noise).write_text(json.dumps(asdict(result)))
    for path in (work.checkpoints, work.export):
        shutil.rmtree(path, ignore_errors=True)
    return result


def error(differences: Sequence[np.ndarray]) -> float:
    """Standard error of a mean difference: by prompt, or by seed where that is larger. differences: of each seed's prompts."""
    every = np.concatenate(differences)
    by_prompt = float(every.std() / math.sqrt(len(every)))
    means = [float(one.mean()) for one in differences]
    return max(by_prompt, float(np.std(means, ddof=1) / math.sqrt(len(means)))) if len(means) > 1 else by_prompt


def table(found: Mapping[tuple[float, str], Mapping[int, Result]]) -> Table:
    """Means over seeds. found: results by noise and arm, and by seed."""
    made = Table(title="Pairs after the warm-up chosen in different ways")
    for name in ("flipped labels", "then trained on"):
        made.add_column(name)
    for name in (
        "seeds",
        "steps",
        "pairs",
        "flipped of these",
        "held-out accuracy",
        "true reward",
        "against random",
        "KL",
        "extra",
    ):
        made.add_column(name, justify="right")
    for noise in NOISE:
        for arm in ARMS:
            if of := found.get((noise, arm)):
                made.add_row(
                    f"{noise:.0%}", arm, *_row(of, found.get((noise, "random"), {}), of_itself=arm == "random")
                )
        made.add_section()
    return made


def _row(of: Mapping[int, Result], random_arm: Mapping[int, Result], *, of_itself: bool) -> list[str]:
    results = list(of.values())
    rewards = np.concatenate([one.rewards for one in results])
    gaps = [np.array(of[seed].rewards) - np.array(random_arm[seed].rewards) for seed in of if seed in random_arm]
    accuracy = float(np.mean([one.accuracy for one in results]))
    spread = math.sqrt(accuracy * (1 - accuracy) / (EVALUATED * len(results)))
    return [
        str(len(results)),
        str(results[0].steps),
        f"{np.mean([one.chosen for one in results]):.0f}",
        f"{np.mean([one.flipped for one in results]):.2f}",
        f"{accuracy:.2f} ± {spread:.2f}",
        f"{rewards.mean():.2f} ± {rewards.std() / math.sqrt(len(rewards)):.2f}",
        "" if of_itself or not gaps else f"{np.concatenate(gaps).mean():+.2f} ± {error(gaps):.2f}",
        f"{np.mean([one.kl for one in results]):.1f}",
        f"{np.mean([one.extra for one in results]):.0%}",
    ]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    shared = Path(os.environ.get("DPO_SHARED", REPOSITORY.parent / "shared"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    parser.add_argument("--model", type=Path, default=shared / "models" / "stories260K")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=608, help="training pairs")
    parser.add_argument("--table", action="store_true", help="run nothing, print what there is")
    parser.add_argument("--work-dir", type=Path, default=REPOSITORY / "runs" / "bench-selection")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not there yet, and print the table; 2 when a phase failed."""
    arguments = parse(argv)
    found: dict[tuple[float, str], dict[int, Result]] = defaultdict(dict)
    sampler = None if arguments.table else Sampler(arguments.model)
    for seed in arguments.seeds:
        folder = arguments.work_dir / f"{arguments.pairs}-{seed}"
        try:
            if sampler is not None and not (folder / "asked.json").exists():
                write_data(sampler, arguments.model, folder, pairs=arguments.pairs, seed=seed)
            for arm, noise in product(ARMS, NOISE):
                if (known := read_result(arm, folder, noise)) is not None:
                    found[noise, arm][seed] = known
                elif sampler is not None:
                    made = run_arm(arm, sampler, arguments.model, folder, noise=noise, pairs=arguments.pairs, seed=seed)
                    found[noise, arm][seed] = made
        except Failed as problem:
            print(problem, file=sys.stderr)
            return 2
    Console(width=160).print(table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
