"""Rounds on fresh answers beside one training on as many pairs of the initial model: `make bench-rounds`, or `python -m benchmarks.rounds`.

The set-up of the DPO paper's controlled experiment (2305.18290, appendix C.1) in miniature, through the product's own phases: prompts are the first
tokens of the model's own samples, and a known reward judges. benchmarks/README.md has the last table and its discussion.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.runs import Failed, run_phase
from dpo_operator.api import names
from dpo_operator.api.iterative import Builtin
from dpo_operator.api.phases import FIRST, LAST, Step, following
from dpo_operator.api.types import DPOJob
from dpo_trainer.rounds import record
from dpo_trainer.runtime.workdir import WorkDir

REPOSITORY = Path(__file__).resolve().parents[1]
# Tokens of a prompt, after the one that begins a text, and of an answer.
PROMPT_TOKENS, ANSWER_TOKENS = 9, 48
COMPARED = 256
# By so many standard errors the last round must lead, and the round before must not lag.
BAR = 3.0
REWARD: dict[str, Any] = {
    "name": "distinctWords",
    "words": [
        "happy", "smiled", "love", "loved", "friend", "friends", "fun", "good", "nice", "kind", "hug", "hugged", "laughed", "best", "great",
        "glad", "beautiful", "helped", "share", "proud",
    ],
    "badWords": [
        "sad", "cried", "scared", "angry", "mad", "bad", "hurt", "lost", "broke", "alone", "mean", "fell", "afraid", "worried", "cry",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A policy. arm: initial, on-policy or offline. rounds: that its pairs are of. reward: mean, with its standard error. kl: nats an answer, from
    the initial model. win: win rate against it; None for itself. pairs: that it was trained on in all.
    """

    seed: int
    arm: str
    rounds: int
    reward: float
    error: float
    kl: float
    win: float | None
    pairs: int


def document(model: Path, data: Path, *, rounds: int, prompts: int, seed: int) -> dict[str, Any]:
    """The job of an arm. prompts: of each round."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "rounds"},
        "spec": {
            "model": {"name": str(model)},
            "data": {"train": {"source": str(data)}, "maxLength": 96},
            "method": {"name": "dpo", "beta": 0.1},
            "training": {
                "epochs": 1.0, "globalBatchSize": 32, "microBatchSize": 16, "learningRate": 1e-4, "scheduler": "cosine", "warmupRatio": 0.1,
                "precision": "fp32", "device": "cpu", "gradientCheckpointing": False, "seed": seed,
            },
            "evaluation": {"samples": 0},
            "checkpoint": {"everySteps": 1_000_000, "keepLast": 1, "keepBest": 0},
            "gpusPerNode": 0,
            "iterative": {
                "rounds": rounds, "promptsPerRound": prompts, "winRate": {"prompts": COMPARED}, "stopWhenWorse": False,
                "generation": {"samplesPerPrompt": 4, "maxNewTokens": ANSWER_TOKENS},
                "pairs": {"chosenMustEnd": False},
                "judge": {"type": "builtin", "builtin": REWARD},
            },
        },
    }  # fmt: skip


def run_job(job: dict[str, Any], work: Path) -> None:
    """Run all phases of a job; a finished phase of an earlier run is not run again. Raises Failed."""
    spec = DPOJob.model_validate(job).spec
    step: Step | None = FIRST
    attempt = 0
    while step is not None:
        attempt += 1
        done = work / f"done-{step.phase}-{step.round}"
        if not done.exists():
            print(f"{work.name}: {step.phase} {step.round or ''}", file=sys.stderr, flush=True)
            command = {"train": "launch"}.get(step.phase, step.phase)
            variables = {names.ENV_ATTEMPT: str(attempt), names.ENV_ROUND: str(step.round)}
            run_phase(command, job, work, variables)
            done.touch()
        leg = WorkDir(work).round(step.round)
        end = record.read_report(leg).ended if step.phase == "judge" else ""
        if end:
            raise Failed(f"{work}: the rounds ended early ({end})")
        step = following(spec, step, end)
        if step == LAST:  # the job's own export adds nothing to the figures
            return


def write_prompts(model: Path, path: Path, count: int, seed: int) -> None:
    """Different beginnings of the model's own samples, as rows of pairs whose answers nobody reads."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    torch.manual_seed(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        begin = torch.full((512, 1), tokenizer.bos_token_id)
        ids = policy.generate(
            begin,
            attention_mask=torch.ones_like(begin),
            max_new_tokens=PROMPT_TOKENS,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
        )
        for row in ids[:, 1:].tolist():
            text = tokenizer.decode(row, skip_special_tokens=True)
            if not {1, 2} & set(row) and len(text) > PROMPT_TOKENS:
                found[text] = None
    rows = [{"prompt": text, "chosen": " yes.", "rejected": " no."} for text in list(found)[:count]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rewards(work: WorkDir, number: int) -> np.ndarray:
    """The true reward of the answers with which a round compares the policy that it begins with: float64 [prompts]."""
    from safetensors.numpy import load_file

    from dpo_trainer.data.tokens.tokenization import load_tokenizer
    from dpo_trainer.judging import Question
    from dpo_trainer.judging.builtin import BuiltinJudge

    tokenizer = load_tokenizer(work.model, "the model")
    judge = BuiltinJudge(Builtin.model_validate(REWARD))
    texts: list[str] = []
    for path in sorted(work.round(number).compared.glob("unit-*.safetensors")):
        unit = load_file(path)
        texts += [
            tokenizer.decode(ids.tolist(), skip_special_tokens=True)
            for ids in np.split(unit["ids"], unit["offsets"][1:-1])
        ]
    judged = judge.judge([Question("", (text, ""), (1, 1)) for text in texts], lambda: None)
    return np.array([one.scores[0] for one in judged if one.scores is not None], dtype=np.float64)


def point(work: WorkDir, number: int, *, seed: int, arm: str, rounds: int) -> Point:
    """The policy with which round `number` of a job begins. rounds: of pairs that it was trained on."""
    found, report = rewards(work, number), record.read_report(work.round(number))
    before = [record.read_report(work.round(r)) for r in range(1, number)]
    return Point(
        seed=seed,
        arm=arm,
        rounds=rounds,
        reward=float(found.mean()),
        error=float(found.std() / math.sqrt(len(found))),
        kl=report.kl_to_initial or 0.0,
        win=before[-1].win_rate_initial if before else None,
        pairs=sum(one.pairs for one in before),
    )


def run_seed(model: Path, folder: Path, *, seed: int, rounds: int, prompts: int) -> list[Point]:
    """All policies of a seed. Raises Failed."""
    data = folder / "prompts.jsonl"
    if not data.exists():
        write_prompts(model, data, rounds * prompts + COMPARED + 64, seed)
    fresh = folder / "on-policy"
    run_job(document(model, data, rounds=rounds, prompts=prompts, seed=seed), fresh)
    work = WorkDir(fresh)
    points = [point(work, 1, seed=seed, arm="initial", rounds=0)]
    points += [point(work, r + 1, seed=seed, arm="on-policy", rounds=r) for r in range(1, rounds + 1)]
    for r in range(2, rounds + 1):
        # The same prompts, all answered by the initial model, and one training on all the pairs.
        offline = folder / f"offline-{r}"
        run_job(document(model, data, rounds=1, prompts=r * prompts, seed=seed), offline)
        points.append(point(WorkDir(offline), 2, seed=seed, arm="offline", rounds=r))
    return points


def missed(points: Sequence[Point], rounds: int) -> list[str]:
    """What falls short of the bars, in words; for each seed."""
    found = []
    for seed in sorted({one.seed for one in points}):
        of = {(one.arm, one.rounds): one for one in points if one.seed == seed}
        last, offline = of["on-policy", rounds], of["offline", rounds]
        lead, error = last.reward - offline.reward, math.hypot(last.error, offline.error)
        if lead < BAR * error:
            found.append(
                f"seed {seed}: round {rounds} leads by {lead:.2f} ± {error:.2f}, less than {BAR:g} standard errors"
            )
        before = of["on-policy", rounds - 1]
        if before.reward < offline.reward - math.hypot(before.error, offline.error) or before.kl > offline.kl:
            found.append(
                f"seed {seed}: round {rounds - 1} has reward {before.reward:.2f} at KL {before.kl:.2f}, offline {offline.reward:.2f} at {offline.kl:.2f}"
            )
    return found


def table(points: Sequence[Point]) -> Table:
    """The table of all policies."""
    made = Table(title="Rounds on fresh answers beside pairs of the initial model")
    made.add_column("seed", justify="right")
    made.add_column("policy")
    for name in ("pairs", "reward", "KL, nats an answer", "win against the initial model"):
        made.add_column(name, justify="right")
    for one in points:
        name = one.arm if one.arm == "initial" else f"{one.arm}, {one.rounds} round{'s' * (one.rounds > 1)} of prompts"
        win = "" if one.win is None else f"{one.win:.2f}"
        made.add_row(str(one.seed), name, str(one.pairs), f"{one.reward:.2f} ± {one.error:.2f}", f"{one.kl:.2f}", win)
    return made


def draw(points: Sequence[Point], path: Path) -> None:
    """A picture of reward over KL, a line for each arm and seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for seed in sorted({one.seed for one in points}):
        start = next(one for one in points if (one.seed, one.arm) == (seed, "initial"))
        first = next(one for one in points if (one.seed, one.arm, one.rounds) == (seed, "on-policy", 1))
        for arm, style in (("on-policy", "o-"), ("offline", "s--")):
            some = [one for one in points if (one.seed, one.arm) == (seed, arm)]
            line = [start, *([first] if arm == "offline" else []), *some]
            axes.errorbar(
                [one.kl for one in line],
                [one.reward for one in line],
                [one.error for one in line],
                fmt=style,
                label=f"{arm}, seed {seed}",
            )
    axes.set_xlabel("KL divergence from the initial model, nats an answer")
    axes.set_ylabel("true reward")
    axes.legend()
    figure.savefig(path, dpi=120)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    shared = Path(os.environ.get("DPO_SHARED", REPOSITORY.parent / "shared"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounds", description=__doc__)
    parser.add_argument("--model", type=Path, default=shared / "models" / "stories260K")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the on-policy arm, at least 2")
    parser.add_argument("--prompts", type=int, default=384, help="prompts of a round")
    parser.add_argument("--work-dir", type=Path, default=REPOSITORY / "runs" / "bench-rounds")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the seeds and print the table; 1 when a bar is missed, 2 when a phase failed."""
    arguments = parse(argv)
    points: list[Point] = []
    try:
        for seed in arguments.seeds:
            folder = arguments.work_dir / f"{arguments.prompts}-{seed}"
            points += run_seed(arguments.model, folder, seed=seed, rounds=arguments.rounds, prompts=arguments.prompts)
    except Failed as error:
        print(error, file=sys.stderr)
        return 2
    Console(width=130).print(table(points))
    picture = arguments.work_dir / "rounds.png"
    draw(points, picture)
    print(f"picture: {picture}")
    short = missed(points, arguments.rounds)
    print(*short, sep="\n")
    return 1 if short else 0


if __name__ == "__main__":
    raise SystemExit(main())
