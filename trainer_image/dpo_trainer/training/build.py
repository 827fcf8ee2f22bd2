"""Set-up of a training run, in the order in which its steps depend on each other: everything that the loop works with."""

from dataclasses import dataclass

from dpo_operator.api.training import AdapterType
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_trainer.batches.sampler import StepPlan
from dpo_trainer.checkpoint.engine_state import EngineState
from dpo_trainer.checkpoint.identity import identity
from dpo_trainer.checkpoint.loading import Restored
from dpo_trainer.checkpoint.store import Checkpoints
from dpo_trainer.checkpoint.trust import Trust, trust_from_environment
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.distributed.world import join_world
from dpo_trainer.engine.engine import Engine
from dpo_trainer.engine.loss_scale import LossScale
from dpo_trainer.losses.objective import Objective
from dpo_trainer.prepare.record import known_digests
from dpo_trainer.pretrained.digest import model_digest
from dpo_trainer.runtime.stop import StopRequest, StopWhen
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.training.examples import Examples, open_examples
from dpo_trainer.training.flops import Throughput
from dpo_trainer.training.nonfinite import NonFinitePolicy
from dpo_trainer.training.pace import Pace
from dpo_trainer.training.reference import References
from dpo_trainer.training.samples import Samples
from dpo_trainer.training.schedule import learning_rate, warmup_steps
from dpo_trainer.training.startup_checks import check_logits_path, choose_layout, log_partitions, log_restored


@dataclass(frozen=True)
class Run:
    """One attempt of training.

    total_steps, warmup: steps of the whole run, and those of its warm-up. state: weights and optimizer state, as checkpoints save and restore them.
    restored: the checkpoint that the attempt resumed from; None when it starts at step 1.
    stop: set by a signal, or when a background save fails. throughput: None on hardware without a known peak.
    """

    spec: DPOJobSpec
    objective: Objective
    train: Examples
    evaluation: Examples | None
    plan: StepPlan
    total_steps: int
    warmup: int
    engine: Engine
    throughput: Throughput | None
    checkpoints: Checkpoints
    state: EngineState
    restored: Restored | None
    samples: Samples
    pace: Pace
    nonfinite: NonFinitePolicy
    telemetry: Telemetry
    stop: StopRequest

    @property
    def finished(self) -> str:
        """How an earlier attempt ended the run; empty when steps are left."""
        return self.restored.state.finished if self.restored else ""

    def learning_rate(self, step: int) -> float:
        """Learning rate of one optimizer step, counted from 1."""
        training = self.spec.training
        return learning_rate(
            step,
            peak=self.spec.learning_rate,
            total_steps=self.total_steps,
            warmup=self.warmup,
            shape=training.scheduler,
            floor=training.min_learning_rate_ratio,
        )


def build(job: DPOJob, work: WorkDir, telemetry: Telemetry, attempt: int, stop: StopRequest) -> Run:
    """Read the data, join the ranks, load the model, compute the reference and resume. Collective.

    Raises TrainerError, and Stopped when a signal came before there was any state to save.
    """
    spec = job.spec
    training = spec.training
    trust = trust_from_environment(required=spec.checkpoint.require_recorded_digest)
    objective = Objective(spec.method)
    train, evaluation = open_examples(work, objective)
    plan = StepPlan(len(train.data), training.global_batch_size, seed=training.seed, shuffle=training.shuffle)
    total_steps = plan.total_steps(epochs=training.epochs, max_steps=training.max_steps)

    engine, ranks = load_engine(spec, work, train, telemetry)
    throughput = Throughput.of(spec, work.model, engine.module.layout, engine.world)
    digest = ranks.run_on_rank_zero(lambda: model_digest(work.model, known_digests(work)))
    if objective.needs_reference:
        reference = References(spec, engine, ranks, work.reference, digest, telemetry, stop)
        for examples in (train, evaluation):
            if examples is not None:
                reference.add_to(examples, budget=spec.eval_batch)

    state = engine.state()
    checkpoints = open_checkpoints(spec, work, train, digest, attempt, ranks, trust, telemetry)
    restored = resume(checkpoints, state, engine, telemetry)
    begin_telemetry(spec, plan, total_steps, restored, trust, telemetry)
    # The first heartbeat ends the operator's start time-out, so heartbeats start here.
    engine.module.after_each_pass(telemetry.alive)
    checkpoints.alive = telemetry.alive
    return Run(
        spec=spec,
        objective=objective,
        train=train,
        evaluation=evaluation,
        plan=plan,
        total_steps=total_steps,
        warmup=warmup_steps(training.warmup_ratio, total_steps),
        engine=engine,
        throughput=throughput,
        checkpoints=checkpoints,
        state=state,
        restored=restored,
        samples=Samples(
            engine,
            ranks,
            work,
            spec,
            evaluation.data if evaluation is not None else None,
            budget=spec.eval_batch,
            resumed_step=restored.step if restored else 0,
        ),
        pace=Pace(engine.world),
        nonfinite=NonFinitePolicy(training.non_finite, checkpoints.skipped(restored)),
        telemetry=telemetry,
        # A failed background save ends the run as a signal does: at a step that all ranks agree on.
        stop=StopWhen(stop, lambda: checkpoints.failed),
    )


def load_engine(spec: DPOJobSpec, work: WorkDir, train: Examples, telemetry: Telemetry) -> tuple[Engine, Ranks]:
    """Join the ranks, load the model and choose how pairs go through it. Collective."""
    telemetry.activity("connecting the ranks")
    world = join_world(spec.training.device)
    telemetry.activity("loading the model")
    engine = Engine(spec, work.model, world)
    ranks = Ranks(world.device)
    log_partitions(engine, ranks, telemetry)
    check_logits_path(engine, train.data, spec.training.precision, telemetry)
    choose_layout(engine, train.data, spec, telemetry)
    return engine, ranks


def open_checkpoints(
    spec: DPOJobSpec,
    work: WorkDir,
    train: Examples,
    digest: str,
    attempt: int,
    ranks: Ranks,
    trust: Trust | None,
    telemetry: Telemetry,
) -> Checkpoints:
    """Fence older attempts. Collective. digest: of the model. Raises TrainerError PEER_LOST when a newer attempt has begun."""
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
    checkpoints.begin()
    return checkpoints


def resume(checkpoints: Checkpoints, state: EngineState, engine: Engine, telemetry: Telemetry) -> Restored | None:
    """Set the engine to the newest usable checkpoint; None without any checkpoint. Collective. Raises TrainerError."""
    telemetry.activity("looking for a checkpoint")
    restored = checkpoints.load(state)
    if restored is not None:
        if restored.state.loss_scale is not None:
            engine.loss_scale = LossScale(**restored.state.loss_scale.model_dump())
        log_restored(restored, telemetry)
    return restored


def begin_telemetry(
    spec: DPOJobSpec,
    plan: StepPlan,
    total_steps: int,
    restored: Restored | None,
    trust: Trust | None,
    telemetry: Telemetry,
) -> None:
    """Open the outputs at the step that the run resumes from."""
    step = restored.step if restored else 0
    adapter = spec.adapter.type
    telemetry.begin(
        max_steps=total_steps,
        resumed_step=step,
        resumed_epoch=plan.epoch(step),
        checkpoint=restored.ref if restored else None,
        recorded=trust.recorded.checkpoints if trust else (),
        checkpoint_interval=spec.checkpoint.every_steps,
        info={
            "model": spec.model.name,
            "loss_type": spec.method.name.value,
            "peft": "none" if adapter is AdapterType.NONE else adapter.value,
            "zero_stage": str(spec.training.zero_stage),
        },
    )
