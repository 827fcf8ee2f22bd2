"""The training loop. It reads from top to bottom; what it decides with is in the modules it imports."""

import time
from contextlib import ExitStack

import torch

from dpo_operator.api.training import AdapterType
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_trainer.batches.sampler import Plan
from dpo_trainer.checkpoint.identity import identity
from dpo_trainer.checkpoint.store import Checkpoints
from dpo_trainer.checkpoint.trust import trust_from_environment
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.distributed.world import join_world
from dpo_trainer.engine.engine import Engine
from dpo_trainer.engine.loss_scale import LossScale
from dpo_trainer.losses.objective import Objective
from dpo_trainer.prepare.record import known_digests
from dpo_trainer.pretrained.digest import model_digest
from dpo_trainer.runtime.stop import Outcome, Stopped, StopRequest, StopWhen
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.training.examples import open_examples
from dpo_trainer.training.flops import Throughput
from dpo_trainer.training.milestones import Milestones
from dpo_trainer.training.nonfinite import BadNumbers
from dpo_trainer.training.pace import Pace
from dpo_trainer.training.reference import References
from dpo_trainer.training.samples import Samples
from dpo_trainer.training.schedule import learning_rate, warmup_steps
from dpo_trainer.training.startup_checks import (
    check_first_step,
    choose_layout,
    choose_logits,
    say_partitions,
    say_restored,
    warn,
)
from dpo_trainer.training.step import forward_backward

# How long a run that ends with an error lets the save in the background end.
_DRAIN_SECONDS = 60.0


def run(job: DPOJob, work: WorkDir, *, telemetry: Telemetry, attempt: int, stop: StopRequest) -> Outcome:
    """Train one job, or go on training it, on all ranks.

    Returns Succeeded after the last step, or Stopped when a signal came and the state was saved.
    Raises TrainerError, and Stopped when a signal came before there was any state to save.
    """
    with ExitStack() as at_end:
        return _run(job, work, telemetry, attempt, stop, at_end)


def _run(
    job: DPOJob, work: WorkDir, telemetry: Telemetry, attempt: int, stop: StopRequest, at_end: ExitStack
) -> Outcome:
    spec = job.spec
    training = spec.training
    trust = trust_from_environment(required=spec.checkpoint.require_recorded_digest)
    objective = Objective(spec.method)
    train, evaluation = open_examples(work, objective)
    plan = Plan(len(train.data), training.global_batch_size, seed=training.seed, shuffle=training.shuffle)
    total_steps = plan.total_steps(epochs=training.epochs, max_steps=training.max_steps)
    warmup = warmup_steps(training.warmup_ratio, total_steps)

    telemetry.activity("connecting the ranks")
    world = join_world(training.device)
    telemetry.activity("loading the model")
    engine = Engine(spec, work.model, world)
    ranks = Ranks(world.device)
    say_partitions(engine, ranks, telemetry)
    choose_logits(engine, train.data, training.precision, telemetry)
    choose_layout(engine, train.data, spec, telemetry)
    throughput = Throughput.of(spec, work.model, engine.module.layout, world)

    digest = ranks.run_on_rank_zero(lambda: model_digest(work.model, known_digests(work)))
    if objective.needs_reference:
        reference = References(spec, engine, ranks, work.reference, digest, telemetry, stop)
        reference.add_to(train, budget=spec.eval_batch)
        if evaluation is not None:
            reference.add_to(evaluation, budget=spec.eval_batch)

    state = engine.state()
    checkpoints = Checkpoints(
        work.checkpoints,
        attempt,
        identity(spec, model=digest, dataset=train.data.digest),
        keep_last=spec.checkpoint.keep_last,
        keep_best=spec.checkpoint.keep_best,
        ranks=ranks,
        trust=trust,
        background=ranks.background_group() if spec.checkpoint.asynchronous else None,
        on_commit=telemetry.checkpoint,
        before_commit=telemetry.sync,
    )
    at_end.callback(checkpoints.drain, _DRAIN_SECONDS)
    checkpoints.begin()
    telemetry.activity("looking for a checkpoint")
    restored = checkpoints.load(state)
    before = restored.state if restored else None
    if before is not None and before.loss_scale is not None:
        engine.loss_scale = LossScale(**before.loss_scale.model_dump())
    first_step = restored.step + 1 if restored else 1
    if restored is not None:
        say_restored(restored, telemetry)
    telemetry.begin(
        max_steps=total_steps,
        resumed_step=first_step - 1,
        resumed_epoch=plan.epoch(first_step - 1),
        checkpoint=restored.ref if restored else None,
        recorded=trust.recorded.checkpoints if trust else (),
        checkpoint_interval=spec.checkpoint.every_steps,
        info=_info(spec),
    )
    # Not before: signs of life end the longer patience that the operator has with loading.
    engine.module.after_each_pass(telemetry.alive)
    checkpoints.alive = telemetry.alive
    if before is not None and before.finished:
        telemetry.ended(before.finished)
        return Outcome("Succeeded", before.finished)
    tokens_seen = before.tokens_seen if before else 0
    pace = Pace(world)
    bad = BadNumbers(training.non_finite, list(before.skipped) if before else [])
    # A save that fails in the background ends the run as a signal does: at a step that all ranks agree on.
    asked = StopWhen(stop, lambda: checkpoints.failed)
    held_out = evaluation.data if evaluation is not None else None
    samples = Samples(engine, ranks, work, spec, held_out, budget=spec.eval_batch, resumed_step=first_step - 1)
    milestones = Milestones(
        spec=spec,
        engine=engine,
        objective=objective,
        train=train,
        evaluation=evaluation,
        plan=plan,
        total_steps=total_steps,
        eval_budget=spec.eval_batch,
        samples=samples,
        checkpoints=checkpoints,
        state=state,
        telemetry=telemetry,
        stop=asked,
        evaluations=list(before.evaluations) if before else [],
        skipped=bad.skipped,
    )

    if restored is None or before is None:
        with telemetry.timed("eval"):
            answered = samples.take(0, telemetry, milestones.should_stop)
        if answered is None:
            raise Stopped(stop.signal_name or "a signal to another rank")
    elif milestones.is_evaluated(restored.step) and before.eval is None:
        # A signal came before this step was evaluated. What the evaluations decide must not depend on that.
        ended = milestones.conclude(restored.step, before.train, stopping=False, committed=True)
        if ended is not None:
            return ended

    step = first_step - 1
    while step < total_steps:
        step += 1
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
        if step in bad.skipped:
            # It failed before the run went back to an earlier step.
            if (ended := milestones.leave_out(step, rate, tokens_seen, stopping=milestones.should_stop())) is not None:
                return ended
            continue
        wrong, scale = "", engine.loss_scale
        while True:
            with telemetry.timed("policy"):
                sums = forward_backward(
                    engine,
                    objective,
                    train,
                    pairs,
                    asked,
                    budget=spec.micro_batch,
                    kl_budget=spec.eval_batch,
                    is_first=step == 1,
                    pace=pace,
                )
            if sums.broken:
                wrong = f"the loss of {sums.broken} of {len(pairs)} pairs"
                engine.abandon()
                break
            with telemetry.timed("optimizer"):
                grad_norm = engine.step(rate)
            if grad_norm is not None:
                break
            if engine.loss_scale is None or engine.loss_scale.is_hopeless:
                wrong = "the gradient"
                break
            telemetry.nonfinite_step()
            # In float16 a finite gradient can be too large for the loss scale: the same pairs again with half of it.

        if wrong:
            telemetry.nonfinite_step()
            if scale is not None:
                engine.loss_scale = scale
            action = bad.judge(step, wrong)
            warn(
                telemetry,
                "NonFinite",
                f"step {step}: NaN or infinity in {wrong}; no weight was changed, and its pairs are left out",
            )
            if action == "rollback" and (back := milestones.roll_back()) is not None:
                step, tokens_seen = back.step, back.state.tokens_seen
                say_restored(back, telemetry)
                warn(telemetry, "RolledBack", f"went back to the checkpoint of step {step}")
            elif (ended := milestones.leave_out(step, rate, tokens_seen, stopping=sums.stop)) is not None:
                return ended
            continue

        tokens_seen, seconds = tokens_seen + sums.tokens, time.monotonic() - started
        metrics = {**sums.metrics, "grad_norm": grad_norm, "learning_rate": rate, "num_tokens": float(tokens_seen)}
        if step == 1:
            check_first_step(metrics, sums.first_loss, objective, training.precision, telemetry)
        telemetry.step(
            step,
            epoch=plan.epoch(step),
            seconds=seconds,
            pairs=len(pairs),
            tokens=sums.tokens,
            truncated=sums.truncated,
            metrics=metrics if step % training.log_every_steps == 0 or step == total_steps else None,
            utilization=throughput.utilization(train.data.lengths[pairs], seconds) if throughput else None,
            slowest=pace.slowest,
            gpu_memory_peak=torch.cuda.max_memory_allocated() if world.device.type == "cuda" else None,
        )

        ended = milestones.conclude(step, metrics, stopping=sums.stop)
        if ended is not None:
            return ended

    # Only when nothing was left to do after the step that was resumed from.
    return Outcome("Succeeded", f"Trained {total_steps} steps on {plan.pairs_seen(total_steps)} pairs.")


def _info(spec: DPOJobSpec) -> dict[str, str]:
    return {
        "model": spec.model.name,
        "loss_type": spec.method.name.value,
        "peft": "none" if spec.adapter.type is AdapterType.NONE else spec.adapter.type.value,
        "zero_stage": str(spec.training.zero_stage),
    }
