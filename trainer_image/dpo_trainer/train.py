"""The training loop. It reads from top to bottom; what it decides with is in the modules it imports."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.training import AdapterType
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_trainer.checkpoint.identity import identity
from dpo_trainer.checkpoint.ranks import Ranks
from dpo_trainer.checkpoint.store import Checkpoints
from dpo_trainer.checks import check_first_step, choose_layout, choose_logits, say_partitions, warn
from dpo_trainer.dataset import PairDataset
from dpo_trainer.engine import Engine, join_world
from dpo_trainer.errors import TrainerError
from dpo_trainer.evaluate import evaluate, logps_table
from dpo_trainer.examples import Examples, open_examples
from dpo_trainer.lossscale import LossScale
from dpo_trainer.objective import Objective
from dpo_trainer.outcome import Outcome, Stopped, StopRequest
from dpo_trainer.reference import model_digest, reference_key, reference_logps
from dpo_trainer.sampler import Plan
from dpo_trainer.samples import Samples
from dpo_trainer.schedule import learning_rate, warmup_steps
from dpo_trainer.step import forward_backward
from dpo_trainer.stopping import cost, judge
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.workdir import WorkDir

if TYPE_CHECKING:
    from dpo_trainer.checkpoint.zero3 import Zero3State

_PROBE_PAIRS = 8


def run(job: DPOJob, work: WorkDir, *, telemetry: Telemetry, attempt: int, stop: StopRequest) -> Outcome:
    """Train one job, or go on training it, on all ranks.

    Returns Succeeded after the last step, or Stopped when a signal came and the state was saved.
    Raises TrainerError, and Stopped when a signal came before there was any state to save.
    """
    spec = job.spec
    training = spec.training
    objective = Objective(spec.method)
    train, evaluation = open_examples(work, objective)
    plan = Plan(len(train.data), training.global_batch_size, seed=training.seed, shuffle=training.shuffle)
    total_steps = plan.total_steps(epochs=training.epochs, max_steps=training.max_steps)
    warmup = warmup_steps(training.warmup_ratio, total_steps)
    eval_size = spec.evaluation.micro_batch_size or 2 * training.micro_batch_size

    telemetry.activity("connecting the ranks")
    world = join_world(training.device)
    telemetry.activity("loading the model")
    engine = Engine(spec, work.model, world)
    ranks = Ranks(world.device)
    say_partitions(engine, ranks, telemetry)
    choose_logits(engine, train.data, training.precision, telemetry)
    choose_layout(engine, train.data, spec, telemetry)

    digest = ranks.on_first(lambda: model_digest(work.model, _known_digests(work)))
    if objective.needs_reference:
        with telemetry.timed("ref"):
            # In bf16 log-probs depend on the batch's shape. The same number of pairs as later makes what is compared
            # alike: with one pair in a micro-batch, the first loss is ln 2 to the last digit.
            _add_reference(train, spec, digest, engine, ranks, work, telemetry, stop, size=training.micro_batch_size)
            if evaluation is not None:
                _add_reference(evaluation, spec, digest, engine, ranks, work, telemetry, stop, size=eval_size)

    # Not at the top: DeepSpeed looks for its device when it is imported, and join_world decides which one that is.
    from dpo_trainer.checkpoint.zero3 import Zero3State

    state = Zero3State(engine.deepspeed, engine.module.model, rank=world.rank, world_size=world.world_size)
    checkpoints = Checkpoints(
        work.checkpoints,
        attempt,
        identity(spec, model=digest, dataset=train.data.digest),
        keep_last=spec.checkpoint.keep_last,
        keep_best=spec.checkpoint.keep_best,
        ranks=ranks,
    )
    checkpoints.begin()
    telemetry.activity("looking for a checkpoint")
    restored = checkpoints.load(state)
    before = restored.state if restored else {}
    if engine.loss_scale is not None and before:
        engine.loss_scale = LossScale(**before["loss_scale"])
    first_step = restored.step + 1 if restored else 1
    for reason in restored.refused if restored else ():
        warn(telemetry, "CheckpointRefused", reason)
    telemetry.begin(
        max_steps=total_steps,
        resumed_step=first_step - 1,
        resumed_epoch=plan.epoch(first_step - 1),
        checkpoint=restored.ref if restored else None,
        checkpoint_interval=spec.checkpoint.every_steps,
        info=_info(spec),
    )
    if before.get("finished"):
        telemetry.ended(before["finished"])
        return Outcome("Succeeded", before["finished"])
    evaluations: list[tuple[int, float | None]] = [(step, value) for step, value in before.get("evaluations", [])]
    tokens_seen: int = before.get("tokens_seen", 0)
    held_out = evaluation.data if evaluation is not None else None
    samples = Samples(engine, ranks, work, spec, held_out, size=eval_size, resumed_step=first_step - 1)

    def should_stop() -> bool:
        return engine.any_rank(stop.is_set())

    def is_evaluated(step: int) -> bool:
        return evaluation is not None and (step == total_steps or step % spec.eval_every_steps == 0)

    def conclude(step: int, metrics: dict[str, float], *, stopping: bool, committed: bool = False) -> Outcome | None:
        """Evaluate, judge and save after a step; how the run ends, None when it goes on. Collective.

        committed: there is a checkpoint of the step, which only lacks its evaluation.
        """
        evaluated: dict[str, float] | None = None
        improved = stale = False
        if evaluation is not None and is_evaluated(step) and not stopping:
            telemetry.activity("evaluating")
            with telemetry.timed("eval"):
                evaluated = evaluate(engine, evaluation, objective, size=eval_size, should_stop=should_stop)
                answered = None if evaluated is None else samples.take(step, telemetry, should_stop)
            if evaluated is not None:
                evaluated |= answered or {}
            stopping = answered is None
        if evaluated is not None:
            telemetry.evaluation(step, evaluated)
            evaluations.append((step, cost(spec.selection_metric, evaluated)))
            verdict = judge(evaluations, spec.early_stopping)
            improved, stale = verdict.improved and spec.checkpoint.keep_best > 0, verdict.stop

        finished = ""
        if step == total_steps and (evaluated is not None or evaluation is None):
            finished = f"Trained {total_steps} steps on {plan.pairs_seen(step)} pairs."
        elif stale:
            finished = (
                f"Stopped early after step {step} of {total_steps}: {spec.selection_metric} has not improved since step "
                f"{verdict.best_step}."
            )
        if finished or stopping or improved or step % spec.checkpoint.every_steps == 0:
            loop: dict[str, Any] = {
                "step": step,
                "epoch": plan.epoch(step),
                "pairs_seen": plan.pairs_seen(step),
                "tokens_seen": tokens_seen,
                "total_steps": total_steps,
                "train": metrics,
                "eval": evaluated,
                "evaluations": evaluations,
                "selection_metric": spec.selection_metric,
                "finished": finished,
            }
            if engine.loss_scale is not None:
                loop["loss_scale"] = asdict(engine.loss_scale)
            if finished or evaluated is not None:
                loop["probe"] = _probe(engine, evaluation or train, spec)
            selection = evaluations[-1][1] if evaluated is not None else None
            _save(checkpoints, state, step, loop, selection, telemetry, committed=committed)
        if finished:
            telemetry.ended(finished)
            return Outcome("Succeeded", finished)
        if stopping:
            return Outcome("Stopped", f"Stopped after step {step} of {total_steps}; a checkpoint of it was committed.")
        return None

    if restored is None:
        with telemetry.timed("eval"):
            answered = samples.take(0, telemetry, should_stop)
        if answered is None:
            raise Stopped(stop.signal_name or "a signal to another rank")
    elif is_evaluated(restored.step) and before["eval"] is None:
        # A signal came before this step was evaluated. What the evaluations decide must not depend on that.
        ended = conclude(restored.step, before["train"], stopping=False, committed=True)
        if ended is not None:
            return ended

    for step in range(first_step, total_steps + 1):
        started = time.monotonic()
        pairs = plan.step(step)

        rate = learning_rate(
            step,
            peak=spec.learning_rate,
            total_steps=total_steps,
            warmup=warmup,
            shape=training.scheduler,
            floor=training.min_learning_rate_ratio,
        )
        while True:
            with telemetry.timed("policy"):
                sums = forward_backward(
                    engine,
                    objective,
                    train,
                    pairs,
                    stop,
                    size=training.micro_batch_size,
                    kl_size=eval_size,
                    is_first=step == 1,
                )
            if sums.broken:
                telemetry.nonfinite_step()
                raise _not_finite(f"the loss of {sums.broken} of {len(pairs)} pairs", step)
            with telemetry.timed("optimizer"):
                grad_norm = engine.step(rate)
            if grad_norm is not None:
                break
            telemetry.nonfinite_step()
            if engine.loss_scale is None or engine.loss_scale.is_hopeless:
                raise _not_finite("the gradient", step)
            # In float16 a finite gradient can be too large for the loss scale: the same pairs again with half of it.
            telemetry.alive()

        tokens_seen += sums.tokens
        metrics = {**sums.metrics, "grad_norm": grad_norm, "learning_rate": rate, "num_tokens": float(tokens_seen)}
        if step == 1:
            check_first_step(metrics, sums.first_loss, training.precision, telemetry)
        telemetry.step(
            step,
            epoch=plan.epoch(step),
            seconds=time.monotonic() - started,
            pairs=len(pairs),
            tokens=sums.tokens,
            truncated=sums.truncated,
            metrics=metrics if step % training.log_every_steps == 0 or step == total_steps else None,
            gpu_memory_peak=torch.cuda.max_memory_allocated() if world.device.type == "cuda" else None,
        )

        ended = conclude(step, metrics, stopping=sums.stop)
        if ended is not None:
            return ended

    # Only when nothing was left to do after the step that was resumed from.
    return Outcome("Succeeded", f"Trained {total_steps} steps on {plan.pairs_seen(total_steps)} pairs.")


def _add_reference(
    examples: Examples,
    spec: DPOJobSpec,
    digest: str,
    engine: Engine,
    ranks: Ranks,
    work: WorkDir,
    telemetry: Telemetry,
    stop: StopRequest,
    *,
    size: int,
) -> None:
    """Compute or read the reference log-probs of one split."""

    def table(what: str, data: PairDataset) -> Tensor:
        telemetry.activity(f"reference log-probs of {what}")
        return reference_logps(
            engine,
            data,
            work.reference,
            key=reference_key(spec, model_digest=digest, dataset_digest=data.digest),
            size=size,
            ranks=ranks,
            after_each=_stop_or_alive(engine, telemetry, stop),
        )

    examples.add_reference(table)


def _stop_or_alive(engine: Engine, telemetry: Telemetry, stop: StopRequest) -> Callable[[int], None]:
    """For passes before the first step: say how far they are; leave on every rank when one was asked to stop."""

    def after_each(pairs: int) -> None:
        telemetry.alive(f"{telemetry.progress.activity.partition(':')[0]}: {pairs} done")
        if engine.any_rank(stop.is_set()):
            raise Stopped(stop.signal_name or "a signal to another rank")

    return after_each


def _probe(engine: Engine, examples: Examples, spec: DPOJobSpec) -> dict[str, Any]:
    """Log-probs of a few pairs under the current weights, to hold the exported model against. Collective."""
    indices = np.arange(min(_PROBE_PAIRS, len(examples.data)), dtype=np.int64)
    table = logps_table(engine, examples.data, size=1, indices=indices)
    return {
        "split": "eval" if examples.name == "evaluation" else "train",
        "pairs": indices.tolist(),
        "logps": table[: len(indices), :, 0].tolist(),
        "precision": spec.training.precision,
    }


def _save(
    checkpoints: Checkpoints,
    state: "Zero3State",
    step: int,
    loop: dict[str, Any],
    selection: float | None,
    telemetry: Telemetry,
    *,
    committed: bool,
) -> None:
    """Commit a checkpoint. selection: cost of its evaluation, by which the best is chosen; None without one.

    committed: the newest checkpoint has these weights already, and only learns what the loop says now.
    """
    telemetry.activity("saving a checkpoint")
    started = time.monotonic()
    metrics = {"selection": selection, "loss": loop["train"]["loss"]}
    try:
        with telemetry.timed("checkpoint"):
            if committed:
                ref = checkpoints.amend(loop=loop, metrics=metrics)
            else:
                ref = checkpoints.save(state, step=step, loop=loop, metrics=metrics)
    except TrainerError:
        telemetry.checkpoint_failed()
        raise
    telemetry.checkpoint(ref, time.monotonic() - started)


def _known_digests(work: WorkDir) -> dict[str, str] | None:
    """SHA-256 of the weight files as prepare recorded them, or None."""
    try:
        weights: dict[str, str] = json.loads(work.prepared.read_text())["model"]["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return weights


def _not_finite(what: str, step: int) -> TrainerError:
    return TrainerError(
        ExitCode.NON_FINITE,
        f"Step {step}: expected finite numbers, found NaN or infinity in {what}; no weight was changed and nothing was saved. "
        "Lower training.learningRate, set training.maxGradNorm, or use precision fp32 to find out whether rounding is "
        "the cause.",
    )


def _info(spec: DPOJobSpec) -> dict[str, str]:
    return {
        "model": spec.model.name,
        "loss_type": spec.method.name.value,
        "peft": "none" if spec.adapter.type is AdapterType.NONE else spec.adapter.type.value,
        "zero_stage": str(spec.training.zero_stage),
    }
