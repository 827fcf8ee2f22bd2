"""The training loop. It reads from top to bottom; what it decides with is in the modules it imports."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.types import AdapterType, DPOJob, DPOJobSpec
from dpo_trainer.checkpoint.identity import identity
from dpo_trainer.checkpoint.ranks import Ranks
from dpo_trainer.checkpoint.store import Checkpoints
from dpo_trainer.checks import check_first_step, choose_logits, say_partitions, warn
from dpo_trainer.dataset import PairDataset
from dpo_trainer.engine import Engine, join_world
from dpo_trainer.errors import TrainerError, bad_dataset
from dpo_trainer.evaluate import evaluate, logps_table, training_batches
from dpo_trainer.losses import PAIR_METRICS, dpo_loss, log_ratios, pair_metrics
from dpo_trainer.outcome import Outcome, Stopped, StopRequest
from dpo_trainer.reference import model_digest, reference_key, reference_logps
from dpo_trainer.sampler import IntArray, Plan
from dpo_trainer.schedule import learning_rate, warmup_steps
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
    train_data, eval_data = _open_data(work)
    plan = Plan(len(train_data), training.global_batch_size, seed=training.seed, shuffle=training.shuffle)
    total_steps = plan.total_steps(epochs=training.epochs, max_steps=training.max_steps)
    warmup = warmup_steps(training.warmup_ratio, total_steps)
    eval_size = spec.evaluation.micro_batch_size or 2 * training.micro_batch_size

    telemetry.activity("connecting the ranks")
    world = join_world(training.device)
    telemetry.activity("loading the model")
    engine = Engine(spec, work.model, world)
    ranks = Ranks(world.device)
    say_partitions(engine, ranks, telemetry)
    choose_logits(engine, train_data, training.precision, telemetry)

    digest = ranks.on_first(lambda: model_digest(work.model, _known_digests(work)))
    references = []
    with telemetry.timed("ref"):
        # In bf16 log-probs depend on the batch's shape. The same number of pairs as later makes what is compared alike:
        # with one pair in a micro-batch, the first loss is ln 2 to the last digit.
        for name, data, size in (
            ("training", train_data, training.micro_batch_size),
            ("evaluation", eval_data, eval_size),
        ):
            if data is not None:
                telemetry.activity(f"reference log-probs of the {name} pairs")
                references.append(
                    reference_logps(
                        engine,
                        data,
                        work.reference,
                        key=reference_key(spec, model_digest=digest, dataset_digest=data.digest),
                        size=size,
                        ranks=ranks,
                        after_each=_stop_or_alive(engine, telemetry, stop),
                    )
                )
    train_reference, eval_reference = references[0], references[-1]

    # Not at the top: DeepSpeed looks for its device when it is imported, and join_world decides which one that is.
    from dpo_trainer.checkpoint.zero3 import Zero3State

    state = Zero3State(engine.deepspeed, engine.module.model, rank=world.rank, world_size=world.world_size)
    checkpoints = Checkpoints(
        work.checkpoints,
        attempt,
        identity(spec, model=digest, dataset=train_data.digest),
        keep_last=spec.checkpoint.keep_last,
        keep_best=spec.checkpoint.keep_best,
        ranks=ranks,
    )
    checkpoints.begin()
    telemetry.activity("looking for a checkpoint")
    restored = checkpoints.load(state)
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

    for step in range(first_step, total_steps + 1):
        started = time.monotonic()
        pairs = plan.step(step)

        with telemetry.timed("policy"):
            sums = _forward_backward(engine, spec, train_data, train_reference, pairs, stop)
        if sums.broken:
            telemetry.nonfinite_step()
            raise _not_finite(f"the loss of {sums.broken} of {len(pairs)} pairs", step)
        rate = learning_rate(
            step, peak=spec.learning_rate, total_steps=total_steps, warmup=warmup, shape=training.scheduler
        )
        with telemetry.timed("optimizer"):
            grad_norm = engine.step(rate)
        if grad_norm is None:
            telemetry.nonfinite_step()
            raise _not_finite("the gradient", step)

        metrics = {**sums.means, "grad_norm": grad_norm, "learning_rate": rate}
        if step == 1:
            check_first_step(metrics, training.precision, telemetry)
        telemetry.step(
            step,
            epoch=plan.epoch(step),
            seconds=time.monotonic() - started,
            pairs=len(pairs),
            tokens=sums.tokens,
            metrics=metrics if step % training.log_every_steps == 0 or step == total_steps else None,
            gpu_memory_peak=torch.cuda.max_memory_allocated() if world.device.type == "cuda" else None,
        )

        is_last, stopping = step == total_steps, sums.stop
        evaluation: dict[str, float] | None = None
        if eval_data is not None and not stopping and (is_last or step % spec.eval_every_steps == 0):
            telemetry.activity("evaluating")
            with telemetry.timed("eval"):
                evaluation = evaluate(
                    engine,
                    eval_data,
                    eval_reference,
                    method=spec.method,
                    size=eval_size,
                    should_stop=lambda: engine.any_rank(stop.is_set()),
                )
            if evaluation is not None:
                telemetry.evaluation(step, evaluation)
            stopping = evaluation is None

        if is_last or stopping or step % spec.checkpoint.every_steps == 0:
            loop: dict[str, Any] = {
                "step": step,
                "epoch": plan.epoch(step),
                "pairs_seen": plan.pairs_seen(step),
                "total_steps": total_steps,
                "train": metrics,
                "eval": evaluation,
            }
            if is_last:
                probed = ("eval", eval_data) if eval_data is not None else ("train", train_data)
                loop["probe"] = _probe(engine, *probed, spec)
            _save(checkpoints, state, step, loop, evaluation, telemetry)
        if stopping and not is_last:
            return Outcome("Stopped", f"Stopped after step {step} of {total_steps}; a checkpoint of it was committed.")

    return Outcome("Succeeded", f"Trained {total_steps} steps on {plan.pairs_seen(total_steps)} pairs.")


def _open_data(work: WorkDir) -> tuple[PairDataset, PairDataset | None]:
    """Training pairs, and evaluation pairs where there are any. Raises TrainerError."""
    train_data = PairDataset.open(work.train_data)
    if not len(train_data):
        raise bad_dataset(f"{work.train_data}: expected at least one training pair, found none; run prepare again")
    if not (work.eval_data / "meta.json").is_file():
        return train_data, None
    eval_data = PairDataset.open(work.eval_data)
    return train_data, eval_data if len(eval_data) else None


@dataclass(frozen=True)
class _Sums:
    """One step's figures over all ranks. broken: pairs whose loss is not finite. stop: some rank was asked to stop."""

    means: dict[str, float]
    tokens: int
    broken: int
    stop: bool


def _forward_backward(
    engine: Engine,
    spec: DPOJobSpec,
    data: PairDataset,
    reference: Tensor,
    pairs: IntArray,
    stop: StopRequest,
) -> _Sums:
    """Gradient of one step's mean loss, in micro-batches; one reduction for all figures."""
    world, method = engine.world, spec.method
    figures = torch.zeros(len(PAIR_METRICS), dtype=torch.float64, device=world.device)
    broken = torch.zeros(1, dtype=torch.float64, device=world.device)
    tokens = 0
    size = spec.training.micro_batch_size
    for batch, last in training_batches(data, pairs, rank=world.rank, world_size=world.world_size, size=size):
        policy = engine.logps(batch).view(-1, 2)
        before, weight = reference[batch.pairs].to(world.device), batch.weight.to(world.device)
        chosen, rejected = log_ratios(policy, before)
        loss = dpo_loss(chosen - rejected, beta=method.beta, label_smoothing=method.label_smoothing)
        engine.backward((loss * weight).sum() / len(pairs), last=last)
        with torch.no_grad():
            real = weight > 0
            figures += pair_metrics(loss, policy, before, beta=method.beta)[real].sum(dim=0)
            broken += (~torch.isfinite(loss[real])).sum()
        tokens += batch.tokens
    counts = torch.tensor([tokens, stop.is_set()], dtype=torch.float64, device=world.device)
    *sums, not_finite, all_tokens, stopping = engine.sum(torch.cat([figures, broken, counts])).tolist()
    means = {name: value / len(pairs) for name, value in zip(PAIR_METRICS, sums, strict=True)}
    return _Sums(means, int(all_tokens), int(not_finite), stopping > 0)


def _stop_or_alive(engine: Engine, telemetry: Telemetry, stop: StopRequest) -> Callable[[int], None]:
    """For passes before the first step: say how far they are; leave on every rank when one was asked to stop."""

    def after_each(pairs: int) -> None:
        telemetry.alive(f"{telemetry.progress.activity.partition(':')[0]}: {pairs} done")
        if engine.any_rank(stop.is_set()):
            raise Stopped(stop.signal_name or "a signal to another rank")

    return after_each


def _probe(engine: Engine, split: str, data: PairDataset, spec: DPOJobSpec) -> dict[str, Any]:
    """Log-probs of a few pairs under the final weights, to hold the exported model against. Collective."""
    indices = np.arange(min(_PROBE_PAIRS, len(data)), dtype=np.int64)
    table = logps_table(engine, data, size=1, indices=indices)
    return {
        "split": split,
        "pairs": indices.tolist(),
        "logps": table[: len(indices)].tolist(),
        "precision": spec.training.precision,
    }


def _save(
    checkpoints: Checkpoints,
    state: "Zero3State",
    step: int,
    loop: dict[str, Any],
    evaluation: dict[str, float] | None,
    telemetry: Telemetry,
) -> None:
    telemetry.activity("saving a checkpoint")
    started = time.monotonic()
    try:
        with telemetry.timed("checkpoint"):
            ref = checkpoints.save(
                state,
                step=step,
                loop=loop,
                metrics={"eval_loss": evaluation["loss"] if evaluation else None, "loss": loop["train"]["loss"]},
            )
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
