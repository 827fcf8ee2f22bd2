"""The generate phase: one process that answers its share of a round's prompts with the whole model.

Generators know nothing of each other. A unit that is there is never made again, so a kill costs the unit in hand.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dpo_operator.api.reports import RoundReport
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data.prompts import PromptSet
from dpo_trainer.distributed.memory import free_cached
from dpo_trainer.distributed.world import choose_device
from dpo_trainer.rounds.answering import Answering, answer_logps
from dpo_trainer.rounds.figures import answered, identical_share
from dpo_trainer.rounds.policy import load_policy
from dpo_trainer.rounds.tasks import initial_path, made, tasks_of
from dpo_trainer.rounds.units import LOGP, Task, Unit, load_arrays, load_unit, save_arrays, save_unit
from dpo_trainer.runtime.errors import invalid_configuration
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry

# Answers that are generated together, where the job does not say.
BATCH = 64
# Below this share of answers that end there is a warning; above that share of prompts whose answers are all the same, an error.
_FEW_END, _ALIKE = 0.5, 0.9


@dataclass(frozen=True)
class Share:
    """Which units this process makes: each `of`-th from number `number`, counted from 0."""

    number: int
    of: int

    @classmethod
    def from_environment(cls) -> "Share":
        """From the rank that the launcher gives; without one a single generator makes all."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def run(
    spec: DPOJobSpec,
    work: WorkDir,
    telemetry: Telemetry,
    share: Share,
    observe: Callable[[str], None] = lambda _: None,
) -> RoundReport:
    """Make this process's units of a round; returns their figures. work: the round's leg. observe: told "begun" or "committed" with a file's name.

    Raises TrainerError when the round before is not exported, and INVALID_CONFIGURATION in the first round when the answers to nearly every
    prompt are all the same.
    """
    assert spec.iterative is not None
    number = work.number
    device = choose_device(spec.training.device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    _settle(device)
    prompts = PromptSet.open(work.prompts)
    tasks = tasks_of(spec, work, prompts, number)
    mine = tasks.all[share.number :: share.of]
    maker = _Maker(spec, work, telemetry, device, prompts, observe)
    there = {task.path: unit for task in mine if (unit := load_unit(task.path, task.key)) is not None}
    missing = [task for task in mine if task.path not in there]
    telemetry.activity(f"round {number}: {len(there)} of {len(mine)} units are there")
    maker.generate(missing, done=len(there), total=len(mine))
    maker.score_by_initial([task for task in mine if task in tasks.compared])

    units = [made(task) for task in mine if task in tasks.training]
    report = RoundReport(round=number, **answered(units))
    _check(units, report, number, spec, telemetry)
    return report


class _Maker:
    def __init__(
        self,
        spec: DPOJobSpec,
        work: WorkDir,
        telemetry: Telemetry,
        device: torch.device,
        prompts: PromptSet,
        observe: Callable[[str], None],
    ) -> None:
        assert spec.iterative is not None
        self._spec, self._work, self._telemetry, self._device = spec, work, telemetry, device
        self._prompts, self._observe = prompts, observe
        self._batch = spec.iterative.generation.micro_batch_size or BATCH

    def generate(self, missing: Sequence[Task], *, done: int, total: int) -> None:
        """Answer the prompts of these units with the policy that the round begins with."""
        if not missing:
            return
        model = self._load(self._work.number - 1, "loading the policy")
        answering = Answering(
            model,
            self._device,
            self._spec.training.seed,
            batch=self._batch,
            alive=self._telemetry.alive,
            say=lambda text: self._telemetry.warning("LessAtOnce", text),
        )
        for count, task in enumerate(missing, start=done + 1):
            self._telemetry.activity(f"answering: unit {count} of {total}")
            self._observe(f"begun {task.path.name}")
            asked = [self._prompts.ids(int(prompt)) for prompt in task.prompts]
            answers = answering.answer(asked, task.prompts.tolist(), task.samples, task.sampling, task.seed_round)
            unit = Unit(task.prompts, tuple(answers))
            save_unit(task.path, unit, task.key)
            self._observe(f"committed {task.path.name}")
            self._telemetry.alive()
            self._telemetry.generated(len(unit.rows), [len(one.ids) for answers in unit.answers for one in answers])
        self._batch = answering.batch

    def score_by_initial(self, compared: Sequence[Task]) -> None:
        """Write the initial policy's log-probs of the answers of the win rates, from which the KL divergence is estimated."""
        missing = [task for task in compared if load_arrays(initial_path(task), LOGP, task.key) is None]
        if not missing:
            return
        first = self._work.number == 1
        model = None if first else self._load(0, "loading the initial model")
        for task in missing:
            unit = made(task)
            answers = [one for answers in unit.answers for one in answers]
            if first:  # the policy that answered is the initial one
                logps = np.array([answer.logp for answer in answers])
            else:
                asked = [self._prompts.ids(int(prompt)) for prompt in unit.rows]
                batch = max(1, self._batch // 4)
                logps = answer_logps(
                    model,
                    asked,
                    [answer.ids for answer in answers],
                    self._device,
                    batch=batch,
                    alive=self._telemetry.alive,
                )
            save_arrays(initial_path(task), {"logp": logps}, task.key)
            self._observe(f"committed {initial_path(task).name}")

    def _load(self, number: int, activity: str) -> Any:
        free_cached()
        self._telemetry.activity(activity)
        return load_policy(self._spec, self._work, number, self._device)


def _settle(device: torch.device) -> None:
    """Settings of the process that must come before its first product of matrices."""
    # Otherwise DeepSpeed, which transformers may import, detects every vendor's module.
    os.environ["DS_ACCELERATOR"] = device.type
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # By default MKL multiplies narrow matrices in an order that depends on where they lie in memory (docs/checkpoints.md).
        os.environ.setdefault("MKL_CBWR", "AUTO")


def _check(units: Sequence[Unit], report: RoundReport, number: int, spec: DPOJobSpec, telemetry: Telemetry) -> None:
    assert spec.iterative is not None
    if report.ended_share is not None and report.ended_share < _FEW_END:
        wanted = spec.iterative.generation
        telemetry.warning(
            "AnswersCut",
            f"{report.ended_share:.0%} of the answers of round {number} end before iterative.generation.maxNewTokens ({wanted.max_new_tokens}); the others "
            "were cut, and are not chosen under pairs.chosenMustEnd. Raise it, or check that generation_config.json names the token that ends a turn",
        )
    if number == 1 and identical_share(units) > _ALIKE:
        raise invalid_configuration(
            f"the {spec.iterative.generation.samples_per_prompt} answers to a prompt are all the same for {identical_share(units):.0%} of the prompts, so there "
            "is nothing to compare; raise iterative.generation.temperature or topP"
        )
