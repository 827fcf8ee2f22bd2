"""The units of a round, worked out from settings, prompts and policy alone: generators and judge come to the same list."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data.prompts import Numbers, PromptSet
from dpo_trainer.rounds.identity import end_ids, policy_digest
from dpo_trainer.rounds.units import Sampling, Task, Unit, load_unit, unit_key
from dpo_trainer.runtime.errors import input_not_found
from dpo_trainer.runtime.workdir import WorkDir


@dataclass(frozen=True)
class Tasks:
    """training: units that pairs are made of; none in a round that only compares policies. compared: units of the win rates."""

    training: tuple[Task, ...]
    compared: tuple[Task, ...]

    @property
    def all(self) -> tuple[Task, ...]:
        """Every unit; generator n of N makes each N-th from the n-th."""
        return (*self.training, *self.compared)


def tasks_of(spec: DPOJobSpec, work: WorkDir, prompts: PromptSet, number: int) -> Tasks:
    """The units of a round, counted from 1. Raises TrainerError when the round before is not exported, or prompts are missing.

    Answers of the win rates are drawn at temperature 1, one to each prompt, by the same numbers in every round: two policies differ in their
    answers only where they differ themselves, and the KL divergence is estimated from the policy's own distribution.
    """
    assert spec.iterative is not None
    rounds, seed = spec.iterative, spec.training.seed
    wanted = rounds.generation
    end, policy = end_ids(work), policy_digest(spec, work, number - 1)
    trained = Sampling(wanted.temperature, wanted.top_p, wanted.max_new_tokens, end)
    plain = Sampling(1.0, 1.0, wanted.max_new_tokens, end)

    def tasks(folder: Path, numbers: Numbers, samples: int, sampling: Sampling, seed_round: int) -> tuple[Task, ...]:
        parts = np.array_split(numbers, range(wanted.unit_prompts, len(numbers), wanted.unit_prompts))
        made = []
        for unit, part in enumerate(part for part in parts if len(part)):
            key = unit_key(policy, prompts, part, samples, sampling, (seed, seed_round), wanted.engine)
            made.append(Task(unit_path(folder, unit), part, samples, sampling, seed_round, key))
        return tuple(made)

    leg, training = work.round(number), tuple[Task, ...]()
    if number <= rounds.rounds:
        asked = prompts.of_round(number, reuse=rounds.reuse_prompts)
        training = tasks(leg.generated, asked, wanted.samples_per_prompt, trained, number)
    return Tasks(training, tasks(leg.compared, prompts.compared, 1, plain, 0))


def unit_path(folder: Path, unit: int) -> Path:
    """File of a unit."""
    return folder / f"unit-{unit:05d}.safetensors"


def initial_path(task: Task) -> Path:
    """File with the initial policy's log-probs of a unit of the win rates."""
    return task.path.with_name(task.path.name.replace("unit-", "initial-"))


def made(task: Task) -> Unit:
    """The unit of a task. Raises TrainerError INPUT_NOT_FOUND when it is not there."""
    unit = load_unit(task.path, task.key)
    if unit is None:
        raise input_not_found(
            f"{task.path}: expected the answers of this unit, found none that belong to it; generate this round again"
        )
    return unit
