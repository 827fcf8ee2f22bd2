"""Work between two optimizer steps: evaluation, samples, early stopping, checkpoint, end of the run."""

import math
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import torch

from dpo_operator.api.training import Budget
from dpo_trainer.batches.sampler import Indices
from dpo_trainer.checkpoint.loading import Restored
from dpo_trainer.checkpoint.loop_state import LoopState, LossScaleState, Probe, finite
from dpo_trainer.engine.loss_scale import LossScale
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.stop import Outcome, Stopped, StopRequest
from dpo_trainer.telemetry.selection import cost
from dpo_trainer.training import diagnosing
from dpo_trainer.training.build import Run
from dpo_trainer.training.early_stopping import judge
from dpo_trainer.training.evaluate import evaluate
from dpo_trainer.training.passes import logps_table
from dpo_trainer.training.startup_checks import check_first_step, log_restored
from dpo_trainer.training.step import StepSums

_PROBE_PAIRS = 8
# Of so many logged steps, one tells how large its update was.
_UPDATES = 10
# One pair in a pass, as the export scores them: then bf16 rounds alike.
_ONE_PAIR = Budget(tokens=1)


class Milestones:
    """Methods are collective. Those that return an Outcome return None when the run continues.

    evaluations: (step, cost) of every evaluation so far.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.evaluations = list(run.restored.state.evaluations) if run.restored else []

    def should_stop(self) -> bool:
        """Whether any rank was asked to stop."""
        return self.run.engine.any_rank(self.run.stop.is_set())

    def is_evaluated(self, step: int) -> bool:
        """Whether there is an evaluation after a step."""
        run = self.run
        return run.evaluation is not None and (step == run.total_steps or step % run.spec.eval_every_steps == 0)

    def trained(self, step: int) -> str:
        """Message of a run that took all of its steps."""
        return f"Trained {self.run.total_steps} steps on {self.run.plan.pairs_seen(step)} pairs."

    def before_training(self, stop: StopRequest) -> Outcome | None:
        """Sample answers of the reference and record how the policy begins, or finish what the checkpoint of the resumed step lacks.

        stop: this process's own request. Raises Stopped when a signal came before there was any state to save.
        """
        run, restored = self.run, self.run.restored
        if restored is None:
            with run.telemetry.timed("eval"):
                answered = run.samples.take(0, run.telemetry, self.should_stop)
            if answered is None:
                raise Stopped(stop.signal_name or "a signal to another rank")
            if run.first or answered:
                run.telemetry.before_first_update(run.first | answered)
            if (ill := run.diagnosing.look(0)) is not None:
                raise diagnosing.stopped(ill)
        elif self.is_evaluated(restored.step) and restored.state.eval is None:
            # A signal came before this evaluation. Evaluate now, so that signals do not change early stopping.
            return self.after_step(restored.step, restored.state.train, stopping=False, committed=True)
        elif (ill := run.diagnosing.look(restored.step)) is not None:
            raise diagnosing.stopped(ill)
        return None

    def report(self, step: int, pairs: Indices, sums: StepSums, metrics: dict[str, float], seconds: float) -> None:
        """Pass a finished step on to telemetry. pairs: of the step. seconds: that it took on this rank."""
        run, training, device = self.run, self.run.spec.training, self.run.engine.world.device
        if step == 1:
            check_first_step(metrics, sums.first_loss, run.objective, training.precision, run.telemetry)
        lengths = run.train.data.lengths[pairs]
        run.telemetry.step(
            step,
            epoch=run.plan.epoch(step),
            seconds=seconds,
            pairs=len(pairs),
            tokens=sums.tokens,
            truncated=sums.truncated,
            metrics=metrics if self._is_logged(step) else None,
            utilization=run.throughput.utilization(lengths, seconds) if run.throughput else None,
            slowest=run.pace.slowest,
            gpu_memory_peak=torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        )

    def after_step(
        self, step: int, metrics: Mapping[str, float | None], *, stopping: bool, committed: bool = False
    ) -> Outcome | None:
        """Evaluate, check early stopping and save after a step.

        metrics: of the step, as they were logged. stopping: some rank was asked to stop.
        committed: there is a checkpoint of the step, which only lacks its evaluation.
        Raises TrainerError STOPPED_BY_DIAGNOSIS, after a save, when a finding of diagnosis.stopOn holds.
        """
        run, spec, evaluated = self.run, self.run.spec, None
        improved = stale = False
        if self.is_evaluated(step) and not stopping:
            evaluated, stopping = self._evaluate(step)
        if evaluated is not None:
            run.telemetry.evaluation(step, evaluated)
            self.evaluations.append((step, cost(spec.selection_metric, evaluated)))
            verdict = judge(self.evaluations, spec.early_stopping)
            improved, stale = verdict.improved and spec.checkpoint.keep_best > 0, verdict.stop

        finished = ""
        # Without figures the run has ended too, when there are none to be had: no data, or no memory for an evaluation.
        if step == run.total_steps and (evaluated is not None or run.evaluation is None or not stopping):
            finished = self.trained(step)
        elif stale:
            assert spec.early_stopping is not None
            least = spec.early_stopping.min_delta
            finished = (
                f"Stopped early after step {step} of {run.total_steps}: {spec.selection_metric} has not improved"
                f"{f' by {least:g}' if least else ''} since step {verdict.best_step}."
            )
        # While pairs are ranked nothing is trained: an attempt that ends meanwhile shall lose no step.
        ranking = run.selecting is not None and run.selecting.is_due(step + 1)
        saved = bool(finished) or stopping or improved or ranking or step % spec.checkpoint.every_steps == 0
        ill = run.diagnosing.look(step) if saved or evaluated is not None else None
        if ill is not None:
            # Not finished: a restart would export what the finding is about.
            finished = ""
        if saved or ill is not None:
            loop = self._loop_state(step, metrics, evaluated, finished)
            self._save(loop, committed=committed, last=bool(finished) or stopping or ill is not None)
        if ill is not None:
            raise diagnosing.stopped(ill)
        if finished:
            run.telemetry.ended(finished)
            return Outcome("Succeeded", finished)
        if stopping:
            return Outcome(
                "Stopped", f"Stopped after step {step} of {run.total_steps}; a checkpoint of it was committed."
            )
        return None

    def skip_step(self, step: int, rate: float, tokens: int, *, stopping: bool) -> Outcome | None:
        """Record a skipped step, then do as `after_step`. rate: learning rate. tokens: trained on so far."""
        run = self.run
        metrics = {"loss": math.nan, "learning_rate": rate, "num_tokens": float(tokens)}
        run.telemetry.skipped_step()
        logged = metrics if self._is_logged(step) else None
        run.telemetry.step(step, epoch=run.plan.epoch(step), seconds=0.0, pairs=0, tokens=0, metrics=logged)
        return self.after_step(step, metrics, stopping=stopping)

    def roll_back(self) -> Restored | None:
        """Go back to the newest checkpoint; None, with nothing changed, when there is none yet."""
        run = self.run
        run.checkpoints.wait()
        # The next save may be far: a process that dies before must not forget this step, and so how many there were.
        run.checkpoints.remember_skipped(run.nonfinite.skipped)
        restored = run.checkpoints.load(run.state)
        if restored is not None:
            self.evaluations[:] = restored.state.evaluations
            if (scale := restored.state.loss_scale) is not None:
                run.engine.loss_scale = LossScale(**scale.model_dump())
            run.telemetry.rewind(restored.step, run.plan.epoch(restored.step))
            run.diagnosing.rewind(restored.step)
            log_restored(restored, run.telemetry)
            run.telemetry.warning("RolledBack", f"went back to the checkpoint of step {restored.step}", once=True)
        return restored

    def is_update_measured(self, step: int) -> bool:
        """Whether the size of a step's update is logged: of some steps alone, because it takes a pass over the optimizer's state."""
        often = step // self.run.spec.training.log_every_steps % _UPDATES == 0
        wanted = step == 1 or often or self.is_evaluated(step)
        return self.run.spec.diagnosis.enabled and self._is_logged(step) and wanted

    def _is_logged(self, step: int) -> bool:
        # The first step's figures were taken before any weight changed: what comes later is compared with them.
        return step in (1, self.run.total_steps) or step % self.run.spec.training.log_every_steps == 0

    def _evaluate(self, step: int) -> tuple[dict[str, float] | None, bool]:
        """Metrics of the evaluation pairs and of the sample answers, and whether a stop came in between.

        A stop during the evaluation returns None; during sampling, the metrics of the evaluation. None without a stop: it did not fit into memory.
        """
        run, examples = self.run, self.run.evaluation
        assert examples is not None
        run.telemetry.activity("evaluating")
        with run.telemetry.timed("eval"):
            evaluated, fitted = run.shortage.within(
                run.spec.eval_batch,
                lambda budget: evaluate(
                    run.engine,
                    examples,
                    run.objective,
                    budget=budget,
                    diagnosed=run.spec.diagnosis.enabled,
                    should_stop=self.should_stop,
                ),
                world_size=run.engine.world.world_size,
                telemetry=run.telemetry,
            )
            if not fitted:
                return None, False
            answered = None if evaluated is None else run.samples.take(step, run.telemetry, self.should_stop)
        if evaluated is None or answered is None:
            return evaluated, True
        return evaluated | answered, False

    def _loop_state(
        self,
        step: int,
        metrics: Mapping[str, float | None],
        evaluated: Mapping[str, float] | None,
        finished: str,
    ) -> LoopState:
        run, scale = self.run, self.run.engine.loss_scale
        return LoopState(
            step=step,
            epoch=run.plan.epoch(step),
            pairs_seen=run.plan.pairs_seen(step),
            total_steps=run.total_steps,
            train=finite(metrics),
            eval=None if evaluated is None else finite(evaluated),
            evaluations=tuple(self.evaluations),
            skipped=tuple(run.nonfinite.skipped),
            selection_metric=run.spec.selection_metric,
            finished=finished,
            loss_scale=None if scale is None else LossScaleState(**asdict(scale)),
            selected=run.selecting.digest(step) if run.selecting is not None else None,
            probe=self._probe() if finished or evaluated is not None else None,
        )

    def _save(self, loop: LoopState, *, committed: bool, last: bool) -> None:
        """Save, or amend the checkpoint of the step. last: the run ends, so wait for the commit."""
        run = self.run
        run.telemetry.activity("saving a checkpoint")
        try:
            with run.telemetry.timed("checkpoint"):
                if committed:
                    run.checkpoints.amend(loop)
                else:
                    run.checkpoints.save(run.state, loop, last=last)
        except TrainerError:
            run.telemetry.checkpoint_failed()
            raise
        run.telemetry.alive("training")

    def _probe(self) -> Probe:
        """Log-probs of a few pairs under the current weights, to compare the exported model with."""
        run = self.run
        examples = run.evaluation or run.train
        indices = np.arange(min(_PROBE_PAIRS, len(examples.data)), dtype=np.int64)
        table = logps_table(run.engine, examples.data, budget=_ONE_PAIR, indices=indices)
        return Probe.of(
            "eval" if examples is run.evaluation else "train",
            indices.tolist(),
            table[: len(indices), :, 0].tolist(),
            run.spec.training.precision,
        )
