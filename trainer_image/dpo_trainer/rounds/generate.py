"""The generate phase: one process that answers its share of a round's prompts with the whole model.

Generators know nothing of each other. A unit that is there is never made again, so a kill costs the unit in hand.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from dpo_operator.api.reports import RoundReport, UnitsReport
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data.prompts import PromptSet
from dpo_trainer.rounds.answers import answered, identical_share
from dpo_trainer.rounds.engines.engine import Engine, Engines
from dpo_trainer.rounds.tasks import initial_path, made, tasks_of
from dpo_trainer.rounds.units import LOGP, Task, Unit, load_arrays, load_unit, save_arrays, save_unit
from dpo_trainer.runtime.errors import invalid_configuration
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry

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
    prompts = PromptSet.open(work.prompts)
    tasks = tasks_of(spec, work, prompts, number)
    mine = tasks.all[share.number :: share.of]
    maker = _Maker(_engines(spec, work, telemetry), work, telemetry, prompts, observe)
    there = {task.path: unit for task in mine if (unit := load_unit(task.path, task.key)) is not None}
    missing = [task for task in mine if task.path not in there]
    telemetry.activity(f"round {number}: {len(there)} of {len(mine)} units are there")
    count = sum(unit.count for unit in there.values())
    maker.generate(missing, UnitsReport(done=len(there), total=len(mine), answers=count))
    maker.score_by_initial([task for task in mine if task in tasks.compared])

    units = [made(task) for task in mine if task in tasks.training]
    report = RoundReport(round=number, **answered(units))
    _check(units, report, number, spec, telemetry)
    return report


def _engines(spec: DPOJobSpec, work: WorkDir, telemetry: Telemetry) -> Engines:
    """The engine that the job names. Only its own libraries are imported: vLLM's image lacks some of the trainer's, and has others in older versions."""
    assert spec.iterative is not None
    if spec.iterative.generation.engine == "vllm":
        from dpo_trainer.rounds.engines.vllm_engine import VllmEngines

        return VllmEngines(spec, work, telemetry)
    from dpo_trainer.rounds.engines.transformers_engine import TransformersEngines

    return TransformersEngines(spec, work, telemetry)


class _Maker:
    def __init__(
        self,
        engines: Engines,
        work: WorkDir,
        telemetry: Telemetry,
        prompts: PromptSet,
        observe: Callable[[str], None],
    ) -> None:
        self._engines, self._work, self._telemetry = engines, work, telemetry
        self._prompts, self._observe = prompts, observe

    def generate(self, missing: Sequence[Task], so_far: UnitsReport) -> None:
        """Answer the prompts of these units with the policy that the round begins with. so_far: what earlier attempts have made."""
        self._telemetry.units(so_far)
        if not missing:
            return
        with closing(self._open(self._work.number - 1, "loading the policy")) as engine:
            for task in missing:
                self._telemetry.activity(f"answering: unit {so_far.done + 1} of {so_far.total}")
                self._observe(f"begun {task.path.name}")
                asked = [self._prompts.ids(int(prompt)) for prompt in task.prompts]
                answers = engine.answer(asked, task.prompts.tolist(), task.samples, task.sampling, task.seed_round)
                unit = Unit(task.prompts, tuple(answers))
                save_unit(task.path, unit, task.key)
                self._observe(f"committed {task.path.name}")
                self._telemetry.alive()
                self._telemetry.generated(len(unit.rows), [len(one.ids) for answers in unit.answers for one in answers])
                more = {"done": so_far.done + 1, "answers": so_far.answers + unit.count}
                so_far = so_far.model_copy(update=more)
                self._telemetry.units(so_far)

    def score_by_initial(self, compared: Sequence[Task]) -> None:
        """Write the initial policy's log-probs of the answers of the win rates, from which the KL divergence is estimated."""
        missing = [task for task in compared if load_arrays(initial_path(task), LOGP, task.key) is None]
        if not missing:
            return
        if self._work.number == 1:  # the policy that answered is the initial one
            for task in missing:
                self._save(task, np.array([answer.logp for answers in made(task).answers for answer in answers]))
            return
        with closing(self._open(0, "loading the initial model")) as engine:
            for task in missing:
                unit = made(task)
                answers = [one.ids for answers in unit.answers for one in answers]
                self._save(task, engine.logps([self._prompts.ids(int(prompt)) for prompt in unit.rows], answers))

    def _save(self, task: Task, logps: np.ndarray) -> None:
        save_arrays(initial_path(task), {"logp": logps}, task.key)
        self._observe(f"committed {initial_path(task).name}")

    def _open(self, number: int, activity: str) -> Engine:
        self._telemetry.activity(activity)
        return self._engines.open(number)


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
