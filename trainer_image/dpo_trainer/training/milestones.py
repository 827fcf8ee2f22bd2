"""What may happen between two optimizer steps: an evaluation, sample answers, a verdict, a checkpoint, the end."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from dpo_operator.api.training import Budget
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.batches.sampler import Plan
from dpo_trainer.checkpoint.loading import Restored
from dpo_trainer.checkpoint.loop_state import LoopState, LossScaleState, Probe, finite
from dpo_trainer.checkpoint.store import Checkpoints
from dpo_trainer.engine.engine import Engine
from dpo_trainer.engine.loss_scale import LossScale
from dpo_trainer.losses.objective import Objective
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.stop import Outcome, StopRequest
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.telemetry.selection import cost
from dpo_trainer.training.early_stopping import judge
from dpo_trainer.training.evaluate import evaluate
from dpo_trainer.training.examples import Examples
from dpo_trainer.training.passes import logps_table
from dpo_trainer.training.samples import Samples

if TYPE_CHECKING:
    from dpo_trainer.checkpoint.engine_state import EngineState

_PROBE_PAIRS = 8
# One pair in a pass, as the export scores them: then bf16 rounds alike.
_ONE_PAIR = Budget(tokens=1)


@dataclass
class Milestones:
    """Everything that `conclude` works with, and the evaluations so far. Its methods are collective.

    eval_budget: of one forward pass without gradients. skipped: steps that training.nonFinite left out.
    """

    spec: DPOJobSpec
    engine: Engine
    objective: Objective
    train: Examples
    evaluation: Examples | None
    plan: Plan
    total_steps: int
    eval_budget: Budget
    samples: Samples
    checkpoints: Checkpoints
    state: "EngineState"
    telemetry: Telemetry
    stop: StopRequest
    evaluations: list[tuple[int, float | None]]
    skipped: list[int]

    def should_stop(self) -> bool:
        """Whether any rank was asked to stop."""
        return self.engine.any_rank(self.stop.is_set())

    def is_evaluated(self, step: int) -> bool:
        """Whether there is an evaluation after a step."""
        return self.evaluation is not None and (step == self.total_steps or step % self.spec.eval_every_steps == 0)

    def conclude(
        self, step: int, metrics: dict[str, float], *, stopping: bool, committed: bool = False
    ) -> Outcome | None:
        """Evaluate, judge and save after a step; how the run ends, None when it goes on.

        metrics: of the step, as they were logged. stopping: some rank was asked to stop.
        committed: there is a checkpoint of the step, which only lacks its evaluation.
        """
        spec, evaluated = self.spec, None
        improved = stale = False
        if self.is_evaluated(step) and not stopping:
            evaluated, stopping = self._evaluate(step)
        if evaluated is not None:
            self.telemetry.evaluation(step, evaluated)
            self.evaluations.append((step, cost(spec.selection_metric, evaluated)))
            verdict = judge(self.evaluations, spec.early_stopping)
            improved, stale = verdict.improved and spec.checkpoint.keep_best > 0, verdict.stop

        finished = ""
        if step == self.total_steps and (evaluated is not None or self.evaluation is None):
            finished = f"Trained {self.total_steps} steps on {self.plan.pairs_seen(step)} pairs."
        elif stale:
            assert spec.early_stopping is not None
            least = spec.early_stopping.min_delta
            finished = (
                f"Stopped early after step {step} of {self.total_steps}: {spec.selection_metric} has not improved"
                f"{f' by {least:g}' if least else ''} since step {verdict.best_step}."
            )
        if finished or stopping or improved or step % spec.checkpoint.every_steps == 0:
            self._save(step, metrics, evaluated, finished, committed=committed, last=bool(finished) or stopping)
        if finished:
            self.telemetry.ended(finished)
            return Outcome("Succeeded", finished)
        if stopping:
            return Outcome(
                "Stopped", f"Stopped after step {step} of {self.total_steps}; a checkpoint of it was committed."
            )
        return None

    def leave_out(self, step: int, rate: float, tokens: int, *, stopping: bool) -> Outcome | None:
        """Go past a step whose update is left out, as `conclude` does. rate: learning rate. tokens: trained on so far."""
        metrics = {"loss": math.nan, "learning_rate": rate, "num_tokens": float(tokens)}
        self.telemetry.skipped_step()
        logged = step % self.spec.training.log_every_steps == 0 or step == self.total_steps
        self.telemetry.step(
            step, epoch=self.plan.epoch(step), seconds=0.0, pairs=0, tokens=0, metrics=metrics if logged else None
        )
        return self.conclude(step, metrics, stopping=stopping)

    def roll_back(self) -> Restored | None:
        """Go back to the newest checkpoint; None, with nothing changed, when there is none yet."""
        self.checkpoints.wait()
        restored = self.checkpoints.load(self.state)
        if restored is not None:
            self.evaluations[:] = restored.state.evaluations
            if (scale := restored.state.loss_scale) is not None:
                self.engine.loss_scale = LossScale(**scale.model_dump())
            self.telemetry.rewind(restored.step, self.plan.epoch(restored.step))
        return restored

    def _evaluate(self, step: int) -> tuple[dict[str, float] | None, bool]:
        """Metrics of the held-out pairs and of the sample answers, and whether a stop came in between.

        A stop during the evaluation leaves no metrics, one during the answers those of the evaluation.
        """
        assert self.evaluation is not None
        self.telemetry.activity("evaluating")
        with self.telemetry.timed("eval"):
            evaluated = evaluate(
                self.engine, self.evaluation, self.objective, budget=self.eval_budget, should_stop=self.should_stop
            )
            answered = None if evaluated is None else self.samples.take(step, self.telemetry, self.should_stop)
        if evaluated is None or answered is None:
            return evaluated, True
        return evaluated | answered, False

    def _save(
        self,
        step: int,
        metrics: Mapping[str, float],
        evaluated: Mapping[str, float] | None,
        finished: str,
        *,
        committed: bool,
        last: bool,
    ) -> None:
        """Save, or amend what was saved. last: the run ends, so be sure that it is committed."""
        scale = self.engine.loss_scale
        loop = LoopState(
            step=step,
            epoch=self.plan.epoch(step),
            pairs_seen=self.plan.pairs_seen(step),
            total_steps=self.total_steps,
            train=finite(metrics),
            eval=None if evaluated is None else finite(evaluated),
            evaluations=tuple(self.evaluations),
            skipped=tuple(self.skipped),
            selection_metric=self.spec.selection_metric,
            finished=finished,
            loss_scale=None if scale is None else LossScaleState(**asdict(scale)),
            probe=self._probe() if finished or evaluated is not None else None,
        )
        self.telemetry.activity("saving a checkpoint")
        try:
            with self.telemetry.timed("checkpoint"):
                if committed:
                    self.checkpoints.amend(loop)
                else:
                    self.checkpoints.save(self.state, loop, last=last)
        except TrainerError:
            self.telemetry.checkpoint_failed()
            raise
        self.telemetry.alive("training")

    def _probe(self) -> Probe:
        """Log-probs of a few pairs under the current weights, to compare the exported model with."""
        examples = self.evaluation or self.train
        indices = np.arange(min(_PROBE_PAIRS, len(examples.data)), dtype=np.int64)
        table = logps_table(self.engine, examples.data, budget=_ONE_PAIR, indices=indices)
        return Probe.of(
            "eval" if examples is self.evaluation else "train",
            indices.tolist(),
            table[: len(indices), :, 0].tolist(),
            self.spec.training.precision,
        )
