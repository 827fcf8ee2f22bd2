"""How far a policy goes from where it began, by beta: `make bench-frontier`, or `python -m benchmarks.frontier`.

One sweep through the product's own phases. Prompts are the beginnings of the model's own samples, answers too; a known reward labels them as a
person would who is not always right (Bradley and Terry), so that each beta has an optimum of its own. The KL divergence is measured on answers
at temperature 1 to prompts that nothing trains on. benchmarks/README.md has the last table.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.rounds import ANSWER_TOKENS, REPOSITORY, REWARD, write_prompts
from benchmarks.runs import Failed, run_phase
from dpo_operator.api import names
from dpo_operator.api.iterative import Builtin
from dpo_operator.api.phases import FIRST, LAST, Step, following
from dpo_operator.api.sweep.report import LegReport
from dpo_operator.api.types import DPOJob
from dpo_trainer.legs import record
from dpo_trainer.runtime.workdir import WorkDir

# Pairs that nothing trains on, and prompts that policies answer for the KL divergence.
HELD_OUT, ASKED = 256, 256


@dataclass(frozen=True)
class Point:
    """A leg. accuracy, margin, drift: as the product reports them. kl: nats an answer, from the initial model, with its standard error."""

    beta: float
    accuracy: float
    margin: float
    drift: float
    kl: float
    error: float


def document(model: Path, folder: Path, *, betas: Sequence[float], seed: int) -> dict[str, Any]:
    """The sweep."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "frontier"},
        "spec": {
            "model": {"name": str(model)},
            "data": {
                "train": {"source": str(folder / "train.jsonl")}, "eval": {"source": str(folder / "eval.jsonl")}, "maxLength": 96,
            },
            "sweep": {"beta": list(betas), "stopUnhealthy": False},
            "training": {
                "epochs": 2.0, "globalBatchSize": 32, "microBatchSize": 16, "learningRate": 5e-4, "scheduler": "cosine", "warmupRatio": 0.1,
                "precision": "fp32", "device": "cpu", "gradientCheckpointing": False, "seed": seed,
            },
            "evaluation": {"everySteps": 1_000_000, "samples": 0},
            "checkpoint": {"everySteps": 1_000_000, "keepLast": 1, "keepBest": 0},
            "gpusPerNode": 0,
        },
    }  # fmt: skip


class Policy:
    """A model that answers prompts at temperature 1, by numbers that depend on the seed alone."""

    def __init__(self, model: Path, seed: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from dpo_trainer.rounds.engines.transformers_engine import TransformersEngine
        from dpo_trainer.rounds.units import Sampling

        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self._engine = TransformersEngine(policy, torch.device("cpu"), seed, batch=128)
        self._sampling = Sampling(1.0, 1.0, ANSWER_TOKENS, (self.tokenizer.eos_token_id,))

    def ids(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Prompts as tokens."""
        return [np.array(self.tokenizer(text)["input_ids"], dtype=np.int32) for text in prompts]

    def answer(self, prompts: Sequence[str], samples: int) -> list[tuple[Any, ...]]:
        """Answers to each prompt."""
        return self._engine.answer(self.ids(prompts), range(len(prompts)), samples, self._sampling, 0)

    def logps(self, prompts: Sequence[str], answers: Sequence[np.ndarray]) -> np.ndarray:
        """Log-probs of answers, float64, nats."""
        return self._engine.logps(self.ids(prompts), answers)


def write_pairs(initial: Policy, model: Path, folder: Path, *, pairs: int, seed: int) -> None:
    """Prompts, and pairs of answers of the initial model, labelled by chance: the better one is chosen with probability σ(difference of rewards)."""
    from dpo_trainer.judging import Question
    from dpo_trainer.judging.builtin import BuiltinJudge

    write_prompts(model, folder / "prompts.jsonl", pairs + HELD_OUT + ASKED, seed)
    asked = read_prompts(folder)[: pairs + HELD_OUT]
    texts = [
        [initial.tokenizer.decode(one.ids.tolist(), skip_special_tokens=True) for one in two]
        for two in initial.answer(asked, 2)
    ]
    judge = BuiltinJudge(Builtin.model_validate(REWARD))
    judged = judge.judge([Question("", (first, second), (1, 1)) for first, second in texts], lambda: None)
    random = np.random.default_rng(seed).random(len(asked))
    rows = []
    for prompt, two, verdict, by in zip(asked, texts, judged, random, strict=True):
        assert verdict.scores is not None
        first = by < 1 / (1 + math.exp(verdict.scores[1] - verdict.scores[0]))
        chosen, rejected = two if first else two[::-1]
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    for name, some in (("train", rows[:pairs]), ("eval", rows[pairs:])):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in some if row["chosen"] != row["rejected"])
        )


def read_prompts(folder: Path) -> list[str]:
    """The prompts of a folder: of the pairs first, then those that policies are asked for the KL divergence."""
    return [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]


def divergence(initial: Policy, trained: Path, prompts: Sequence[str], seed: int) -> tuple[float, float]:
    """KL divergence of an exported policy from the initial one, nats an answer, and its standard error."""
    policy = Policy(trained, seed)
    answers = [one for (one,) in policy.answer(prompts, 1)]
    own = np.array([float(one.logps.astype(np.float64).sum()) for one in answers])
    ratios = own - initial.logps(prompts, [one.ids for one in answers])
    return float(ratios.mean()), float(ratios.std(ddof=1) / math.sqrt(len(ratios)))


def run(job: dict[str, Any], work: Path) -> list[LegReport]:
    """Prepare and train all legs; what an earlier run has done is not done again. Raises Failed."""
    spec = DPOJob.model_validate(job).spec
    step: Step | None = FIRST
    while step is not None and step != LAST:
        done = work / f"done-{step.phase}-{step.leg}"
        if not done.exists():
            print(f"{work.name}: {step.phase} {step.whose}", file=sys.stderr, flush=True)
            variables = {names.ENV_ATTEMPT: str(step.leg + 1), names.ENV_LEG: str(step.leg)}
            run_phase({"train": "launch"}.get(step.phase, step.phase), job, work, variables)
            done.touch()
        step = following(spec, step)
    return record.read_reports(WorkDir(work))


def points(model: Path, folder: Path, *, betas: Sequence[float], pairs: int, seed: int) -> list[Point]:
    """All legs, by beta. Raises Failed."""
    folder.mkdir(parents=True, exist_ok=True)
    initial = Policy(model, seed)
    if not (folder / "eval.jsonl").exists():
        write_pairs(initial, model, folder, pairs=pairs, seed=seed)
    job, work = document(model, folder, betas=betas, seed=seed), folder / "work"
    asked = read_prompts(folder)[-ASKED:]
    found = []
    for leg, beta in zip(run(job, work), betas, strict=True):
        # The export of this leg takes the place of the one before.
        run_phase("export", job, work, {names.ENV_LEG: str(leg.leg)})
        kl, error = divergence(initial, work / "export", asked, seed)
        found.append(Point(beta, leg.accuracy or 0.0, leg.margin or 0.0, leg.drift or 0.0, kl, error))
    return sorted(found, key=lambda point: point.beta)


def missed(found: Sequence[Point]) -> list[str]:
    """Where the KL divergence does not fall with beta, in words."""
    return [
        f"KL is {after.kl:.2f} ± {after.error:.2f} at beta {after.beta:g}, and {before.kl:.2f} ± {before.error:.2f} at {before.beta:g}"
        for before, after in pairwise(found)
        if not after.kl < before.kl
    ]


def table(found: Sequence[Point]) -> Table:
    """The table of all legs."""
    made = Table(title="How far a policy goes, by beta")
    for name in ("beta", "held-out accuracy", "margin, nats", "drift, nats a token", "KL, nats an answer"):
        made.add_column(name, justify="right")
    for one in found:
        made.add_row(
            f"{one.beta:g}",
            f"{one.accuracy:.3f}",
            f"{one.margin:.3f}",
            f"{one.drift:.4f}",
            f"{one.kl:.2f} ± {one.error:.2f}",
        )
    return made


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    shared = Path(os.environ.get("DPO_SHARED", REPOSITORY.parent / "shared"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frontier", description=__doc__)
    parser.add_argument("--model", type=Path, default=shared / "models" / "stories260K")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1.0])
    parser.add_argument("--pairs", type=int, default=512, help="pairs to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work-dir", type=Path, default=REPOSITORY / "runs" / "bench-frontier")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep and print the table; 1 when the KL divergence does not fall with beta, 2 when a phase failed."""
    arguments = parse(argv)
    folder = (
        arguments.work_dir / f"{arguments.pairs}-{arguments.seed}-{'-'.join(f'{beta:g}' for beta in arguments.betas)}"
    )
    try:
        found = points(arguments.model, folder, betas=arguments.betas, pairs=arguments.pairs, seed=arguments.seed)
    except Failed as error:
        print(error, file=sys.stderr)
        return 2
    Console(width=110).print(table(found))
    short = missed(found)
    print(*short, sep="\n")
    return 1 if short else 0


if __name__ == "__main__":
    raise SystemExit(main())
