"""The training loop. build.py sets it up; milestones.py has what happens between two steps."""

import math
import time

from dpo_operator.api.types import DPOJob
from dpo_trainer.batches.sampler import Indices
from dpo_trainer.runtime.stop import Outcome, StopRequest
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.training.build import Run, build
from dpo_trainer.training.milestones import Milestones
from dpo_trainer.training.step import StepSums, forward_backward

# Time for a background save to finish after an error.
_DRAIN_SECONDS = 60.0


def run(job: DPOJob, work: WorkDir, *, telemetry: Telemetry, attempt: int, stop: StopRequest) -> Outcome:
    """Train one job on all ranks, from its newest checkpoint if there is one.

    Returns Succeeded after the last step, or Stopped when a signal came and the state was saved.
    Raises TrainerError, and Stopped when a signal came before there was any state to save.
    """
    made = build(job, work, telemetry, attempt, stop)
    if made.finished:
        telemetry.ended(made.finished)
        return Outcome("Succeeded", made.finished)
    milestones = Milestones(made)
    try:
        return milestones.before_training(stop) or _loop(made, milestones)
    finally:
        made.checkpoints.drain(_DRAIN_SECONDS)


def _loop(run: Run, milestones: Milestones) -> Outcome:
    start = run.restored
    step, tokens_seen = (start.step, start.state.tokens_seen) if start else (0, 0)
    while step < run.total_steps:
        step += 1
        if run.selecting is not None and not run.selecting.make_ready(step):
            # The step before was saved, because this one needed a list.
            run.checkpoints.wait()
            return Outcome("Stopped", f"Stopped after step {step - 1} of {run.total_steps}, while pairs were ranked.")
        began = time.monotonic()
        pairs, rate = run.plan.step(step), run.learning_rate(step)
        if step in run.nonfinite.skipped:
            # This step failed before a rollback; it is skipped when it comes again.
            ended = milestones.skip_step(step, rate, tokens_seen, stopping=milestones.should_stop())
            if ended is not None:
                return ended
            continue

        sums, grad_norm, nonfinite = _update(run, step, pairs, rate)
        if nonfinite:
            action = run.nonfinite.decide(step, nonfinite)
            text = f"step {step}: NaN or infinity in {nonfinite}; no weight was changed, and its pairs are left out"
            run.telemetry.warning("NonFinite", text, once=True)
            if action == "rollback" and (back := milestones.roll_back()) is not None:
                step, tokens_seen = back.step, back.state.tokens_seen
                continue
            ended = milestones.skip_step(step, rate, tokens_seen, stopping=sums.stop)
        else:
            tokens_seen, seconds = tokens_seen + sums.tokens, time.monotonic() - began
            metrics = {**sums.metrics, "grad_norm": grad_norm, "learning_rate": rate, "num_tokens": float(tokens_seen)}
            metrics["pairs"] = float(len(pairs))
            if milestones.is_update_measured(step):
                metrics["update_ratio"] = run.engine.update_ratio()
            milestones.report(step, pairs, sums, metrics, seconds)
            ended = milestones.after_step(step, metrics, stopping=sums.stop)
        if ended is not None:
            return ended

    # Only when no step was left after the one that was resumed from.
    return Outcome("Succeeded", milestones.trained(run.total_steps))


def _update(run: Run, step: int, pairs: Indices, rate: float) -> tuple[StepSums, float, str]:
    """Forward, backward and optimizer step. Collective.

    Returns the step's sums, the norm of its gradient, and what was not finite: empty when the weights were updated.
    """
    engine, telemetry, spec = run.engine, run.telemetry, run.spec
    scale = engine.loss_scale
    while True:
        with telemetry.timed("policy"):
            sums = forward_backward(
                engine,
                run.objective,
                run.train,
                pairs,
                run.stop,
                budget=spec.micro_batch,
                kl_budget=spec.eval_batch,
                # With another reference the first loss is whatever it is.
                is_first=step == 1 and run.is_level,
                router_aux_loss=spec.training.router_aux_loss,
                diagnosed=spec.diagnosis.enabled,
                pace=run.pace,
            )
        if sums.nonfinite_pairs:
            engine.abandon()
            nonfinite = f"the loss of {sums.nonfinite_pairs} of {len(pairs)} pairs"
            break
        with telemetry.timed("optimizer"):
            grad_norm = engine.step(rate)
        if grad_norm is not None:
            return sums, grad_norm, ""
        if engine.loss_scale is None or engine.loss_scale.is_hopeless:
            nonfinite = "the gradient"
            break
        telemetry.nonfinite_step()
        # In float16 a finite gradient can be too large for the loss scale: the same pairs again with half of it.
    telemetry.nonfinite_step()
    if scale is not None:
        engine.loss_scale = scale
    return sums, math.nan, nonfinite
