"""The phases of a small job with rounds on a real model, each in a process of its own."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.reports import Termination
from dpo_operator.api.types import DPOJob
from tests import tied
from tests.numerics.ranks import on_ranks

KIND = ["happy", "smiled", "love", "friend", "fun", "good", "nice", "kind", "hug", "play", "laughed", "best", "great"]
SAD = ["sad", "cried", "scared", "angry", "mad", "bad", "hurt", "lost", "alone", "mean"]
PROMPTS, COMPARED = 8, 8
_NAMES = ("Lily", "Tom", "Ben", "Sue", "Max", "Mia")
_STARTS = ("Once upon a time, {} had a", "One day, {} went to the", "{} was a very", "There was a cat and {}")


def a_job(shared: Path, root: Path, *, spec: dict[str, Any] | None = None, **iterative: Any) -> dict[str, Any]:
    """Two rounds of stories260K with a true reward, on 24 prompts. spec: replaces parts of the spec."""
    asked = [start.format(name) for start in _STARTS for name in _NAMES]
    rows = [{"prompt": prompt, "chosen": " friend.", "rejected": " day."} for prompt in asked]
    data = root / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "metadata": {"name": "rounds"},
        "spec": {
            "model": {"name": str(shared / "models" / "stories260K")},
            "data": {"train": {"source": str(data)}, "maxLength": 64},
            "training": {
                "globalBatchSize": PROMPTS, "learningRate": 1e-3, "precision": "fp32", "device": "cpu", "warmupRatio": 0.0,
                "gradientCheckpointing": False, "seed": 3, "epochs": 3,
            },
            "checkpoint": {"everySteps": 1},
            "gpusPerNode": 0,
            "iterative": {
                "rounds": 2, "promptsPerRound": PROMPTS, "winRate": {"prompts": COMPARED}, "pairs": {"chosenMustEnd": False},
                "generation": {"samplesPerPrompt": 4, "maxNewTokens": 32, "unitPrompts": 3},
                "judge": {"type": "builtin", "builtin": {"name": "distinctWords", "words": KIND, "badWords": SAD}},
                **iterative,
            },
            **(spec or {}),
        },
    }  # fmt: skip


class Job:
    """A job in a work folder. Attempts count over all its phases."""

    def __init__(self, root: Path, document: dict[str, Any]) -> None:
        self.root, self.document = root, document
        self.work = root / "work"
        self.work.mkdir(parents=True)
        self.file = root / "job.json"
        self.file.write_text(json.dumps(document))
        self.attempt = 0

    def copied(self, root: Path, **iterative: Any) -> "Job":
        """The same job at the same point in another folder. iterative: settings that change."""
        document = json.loads(json.dumps(self.document))
        document["spec"]["iterative"] |= iterative
        other = Job(root, document)
        shutil.copytree(self.work, other.work, dirs_exist_ok=True)
        other.attempt = self.attempt
        return other

    def run(self, phase: names.Phase, round_number: int = 0, *, ranks: int = 1) -> Termination:
        """Run a phase on some ranks, or with as many generators; the first one's termination message, which must tell of success."""
        found = self.ended(phase, round_number, ranks=ranks)
        assert found.exit_code == 0, f"{phase} {round_number}: {found.reason}: {found.message}"
        return found

    def ended(self, phase: names.Phase, round_number: int = 0, *, ranks: int = 1) -> Termination:
        """The same, however it ended."""
        self.attempt += 1
        texts = on_ranks(ranks, _phase, phase, str(self.file), str(self.work), self._variables(round_number))
        found = Termination.from_text(texts[0])
        assert found is not None
        return found

    def command(self, *arguments: str, round_number: int, processes: int = 1) -> Termination:
        """Run the command of a pod."""
        self.attempt += 1
        phase = arguments[-1]
        variables = {"PET_NNODES": "1", "PET_NPROC_PER_NODE": str(processes), "PET_NODE_RANK": "0"}
        done = tied.run(
            [
                sys.executable,
                "-m",
                "dpo_trainer",
                *arguments,
                "--job-file",
                str(self.file),
                "--work-dir",
                str(self.work),
            ],
            env=os.environ | self._variables(round_number) | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = Termination.from_text((self.work / f"termination-{phase}-{self.attempt}-0.json").read_text())
        assert found is not None
        return found

    def spec(self) -> Any:
        return DPOJob.model_validate(self.document).spec

    def _variables(self, round_number: int) -> dict[str, str]:
        return {
            names.ENV_ATTEMPT: str(self.attempt), names.ENV_ROUND: str(round_number), names.ENV_METRICS_PORT: "0",
            "DPO_BIND_ADDRESS": "127.0.0.1",
        }  # fmt: skip


def _phase(phase: str, job_file: str, work: str, variables: dict[str, str]) -> str:
    """One process of a phase; its termination message."""
    from dpo_trainer import phases

    message = Path(work).parent / f"message-{phase}-{os.environ['RANK']}"
    os.environ.update(variables)
    os.environ.update({names.ENV_TERMINATION_LOG: str(message), "LOCAL_WORLD_SIZE": "1"})
    phases.run(phase, Path(job_file), Path(work))
    return message.read_text()


def killed_at(point: str) -> Callable[[str], None]:
    """An observer that kills its process at a point."""

    def observe(now: str) -> None:
        if now == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return observe


def generate_until(job_file: str, work: str, round_number: int, point: str) -> None:
    """Generate a round, as one generator, and die at a point."""
    from dpo_trainer.rounds import generate
    from dpo_trainer.runtime.job import read_job
    from dpo_trainer.runtime.workdir import WorkDir
    from dpo_trainer.telemetry import Telemetry

    leg = WorkDir(Path(work)).round(round_number)
    spec = read_job(Path(job_file)).spec
    generate.run(spec, leg, Telemetry("generate", 1, leg), generate.Share(0, 1), killed_at(point))


def judge_until(job_file: str, work: str, round_number: int, point: str) -> None:
    """Judge a round, and die at a point."""
    from dpo_trainer.rounds import judge
    from dpo_trainer.runtime.job import read_job
    from dpo_trainer.runtime.stop import StopRequest
    from dpo_trainer.runtime.workdir import WorkDir
    from dpo_trainer.sources.access import Access
    from dpo_trainer.telemetry import Telemetry

    leg = WorkDir(Path(work)).round(round_number)
    spec = read_job(Path(job_file)).spec
    judge.run_phase(spec, leg, Telemetry("judge", 1, leg), Access(), StopRequest(), killed_at(point))


def train_until(job_file: str, work: str, round_number: int, attempt: int, step: int) -> None:
    """Train a round as one of its ranks; all die after a step whose checkpoint is committed."""
    from dpo_trainer.runtime.job import read_job
    from dpo_trainer.runtime.stop import StopRequest
    from dpo_trainer.runtime.workdir import WorkDir
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.training import train

    class Dying(Telemetry):
        def step(self, number: int, **news: Any) -> None:
            super().step(number, **news)
            if number == step + 1:
                os.kill(os.getpid(), signal.SIGKILL)

    leg, rank = WorkDir(Path(work)).round(round_number), int(os.environ["RANK"])
    world = int(os.environ["WORLD_SIZE"])
    telemetry = Dying("train", attempt, leg, rank=rank, local_rank=rank, world_size=world)
    document = read_job(Path(job_file))
    # In the foreground, so that the step's checkpoint is there when the next step has ended.
    checkpoint = document.spec.checkpoint.model_copy(update={"asynchronous": False})
    job = document.model_copy(update={"spec": document.spec.model_copy(update={"checkpoint": checkpoint})})
    train.run(job, leg, telemetry=telemetry, attempt=attempt, stop=StopRequest())
