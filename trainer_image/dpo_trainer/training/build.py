"""Set-up of a training run, in the order in which its steps depend on each other: everything that the loop works with."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from dpo_operator.api.model import Adapter, AdapterType
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_trainer.batches.plans import Plan, plan_of
from dpo_trainer.checkpoint.engine_state import EngineState
from dpo_trainer.checkpoint.identity import identity
from dpo_trainer.checkpoint.loading import Restored
from dpo_trainer.checkpoint.store import Checkpoints
from dpo_trainer.checkpoint.trust import Owner, Trust, newest_parameters, trust_from_environment
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.distributed.world import World, begin_training, join_world, uses_cuda
from dpo_trainer.engine.engine import Engine
from dpo_trainer.engine.loss_scale import LossScale
from dpo_trainer.losses.objective import Objective
from dpo_trainer.prepare.record import input_digests
from dpo_trainer.runtime.stop import StopRequest, StopWhen
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.telemetry.metrics_file import first_figures, read_metrics
from dpo_trainer.training.beginning import Beginning, start_at
from dpo_trainer.training.diagnosing import Diagnosing
from dpo_trainer.training.examples import Examples, open_examples, read_sources
from dpo_trainer.training.flops import Throughput
from dpo_trainer.training.nonfinite import NonFinitePolicy
from dpo_trainer.training.pace import Pace
from dpo_trainer.training.reference import References, progress
from dpo_trainer.training.sampling import Samples, samples_of
from dpo_trainer.training.schedule import learning_rate, warmup_steps
from dpo_trainer.training.selecting import Selecting, selecting_of
from dpo_trainer.training.shortage import Shortage
from dpo_trainer.training.startup_checks import check_logits_path, choose_layout, log_partitions, log_restored
from dpo_trainer.training.surprise import Surprise, measure


@dataclass(frozen=True)
class Run:
    """One attempt of training.

    selecting: chooses the pairs that plan spreads over the steps; None without training.selection.
    total_steps, warmup: steps of the whole run, and those of its warm-up. state: weights and optimizer state, as checkpoints save and restore them.
    restored: the checkpoint that the attempt resumed from; None when it starts at step 1.
    first: figures of the policy before its first update; empty when an earlier attempt measured them, and without spec.diagnosis.
    is_level: whether the policy is the reference before its first update.
    stop: set by a signal, or when a background save fails. throughput: None on hardware without a known peak.
    """

    spec: DPOJobSpec
    objective: Objective
    train: Examples
    evaluation: Examples | None
    plan: Plan
    selecting: Selecting | None
    total_steps: int
    warmup: int
    engine: Engine
    throughput: Throughput | None
    checkpoints: Checkpoints
    state: EngineState
    restored: Restored | None
    first: dict[str, float]
    is_level: bool
    samples: Samples
    shortage: Shortage
    pace: Pace
    nonfinite: NonFinitePolicy
    diagnosing: Diagnosing
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


def _set_sources(splits: Collection[Examples], sources: Mapping[str, dict[str, int]]) -> None:
    for examples in splits:
        examples.sources = sources.get(examples.name, {})


def _is_measured(work: WorkDir, ranks: Ranks) -> bool:
    """Whether an earlier attempt has the figures of the policy before its first update. Collective."""
    return ranks.run_on_rank_zero(lambda: bool(first_figures(read_metrics(work.metrics))))


def _looked_at(surprise: Surprise | None, ranks: Ranks, look: Callable[[Surprise], None]) -> dict[str, float]:
    """Figures of the policy before its first update, {} when they are not needed. look: measures in passes of its own. Collective."""
    if surprise is None:
        return {}
    if not (first := surprise.figures(ranks)):
        # There was no pass of the policy over the reference's log-probs.
        look(surprise)
        first = surprise.figures(ranks)
    return first


def build(job: DPOJob, work: WorkDir, telemetry: Telemetry, attempt: int, stop: StopRequest) -> Run:
    """Read the data, join the ranks, load the model, compute the reference and resume. Collective.

    Raises TrainerError, and Stopped when a signal came before there was any state to save.
    """
    spec = job.spec
    training = spec.training
    trust = trust_from_environment(required=spec.checkpoint.require_recorded_digest)
    objective = Objective(spec.method)
    train, evaluation = open_examples(work, objective)
    plan = plan_of(spec, len(train.data))
    total_steps = plan.total_steps(epochs=training.epochs, max_steps=training.max_steps)

    telemetry.activity("connecting the ranks")
    world = join_world(training.device)
    ranks = Ranks().own_group()
    digests = ranks.run_on_rank_zero(lambda: input_digests(spec, work))
    splits = [examples for examples in (train, evaluation) if examples is not None]
    if spec.diagnosis.enabled:
        _set_sources(splits, ranks.run_on_rank_zero(lambda: read_sources(spec, work)))
    if objective.needs_reference and spec.model.reference is not None:
        add_other_reference(spec, work, splits, world, ranks, digests["reference"], telemetry, stop)
    start, trust = start_at(spec, work, trust, telemetry)
    owner = Owner(identity(spec, dataset=train.data.digest, **digests), trust)
    before = ranks.run_on_rank_zero(lambda: newest_parameters(work.checkpoints, owner))
    engine = load_engine(spec, work.model, world, train, ranks, telemetry, before=before)
    beginning = Beginning(spec, work, engine, ranks, start, telemetry)
    looks = spec.diagnosis.enabled and objective.predicts_tokens and not before
    surprise = Surprise() if looks and not _is_measured(work, ranks) else None
    throughput = Throughput.of(spec, work.model, engine.module.layout, engine.world)
    if objective.needs_reference and spec.model.reference is None:
        look = surprise if beginning.is_level else None
        add_reference(spec, work, splits, beginning, engine, ranks, digests["model"], look, telemetry, stop)
    if not before:
        beginning.check(train)
    seen = plan.pairs_seen(total_steps)
    after_each = progress("surprise at the data", ranks, telemetry, stop)
    first = _looked_at(surprise, ranks, lambda look: measure(look, engine, train, spec.eval_batch, seen, after_each))

    shortage = Shortage.read(work, ranks)
    state = engine.state()
    checkpoints = open_checkpoints(spec, work, train, digests, attempt, ranks, trust, telemetry)
    restored = resume(checkpoints, state, engine, telemetry)
    step = restored.step if restored else 0
    # A failed background save ends the run as a signal does: at a step that all ranks agree on.
    stop = StopWhen(stop, lambda: checkpoints.failed)
    selecting = selecting_of(spec, plan, engine, objective, train, ranks, work, shortage, telemetry, stop, restored)
    begin_telemetry(spec, plan, total_steps, restored, trust, telemetry)
    begin_training()
    # The first heartbeat ends the operator's start time-out, so heartbeats start here.
    engine.module.after_each_pass(telemetry.alive)
    checkpoints.alive = telemetry.alive
    return Run(
        spec=spec,
        objective=objective,
        train=train,
        evaluation=evaluation,
        plan=plan,
        selecting=selecting,
        total_steps=total_steps,
        warmup=warmup_steps(training.warmup_ratio, total_steps),
        engine=engine,
        throughput=throughput,
        checkpoints=checkpoints,
        state=state,
        restored=restored,
        first=first,
        is_level=spec.model.reference is None and beginning.is_level,
        samples=samples_of(spec, work, engine, ranks, evaluation, total_steps, step, shortage),
        shortage=shortage,
        pace=Pace(engine.world),
        nonfinite=NonFinitePolicy(training.non_finite, checkpoints.skipped(restored)),
        diagnosing=Diagnosing(
            spec, work, ranks, telemetry, total_steps, resumed_step=step, moved=not beginning.is_level
        ),
        telemetry=telemetry,
        stop=stop,
    )


def load_engine(
    spec: DPOJobSpec,
    folder: Path,
    world: World,
    train: Examples,
    ranks: Ranks,
    telemetry: Telemetry,
    *,
    trained: bool = True,
    before: Collection[str] = (),
) -> Engine:
    """Load a model and choose how pairs go through it. Collective. trained, before: see Engine."""
    activity = "loading the model" if trained else "loading the reference model"
    telemetry.activity(activity)

    def alive(weights: int) -> None:
        telemetry.reading(f"{activity}: {weights} weights")

    engine = Engine(spec, folder, world, trained=trained, before=before, alive=alive)
    log_partitions(engine, ranks, telemetry)
    check_logits_path(engine, train.data, spec.training.precision, telemetry)
    choose_layout(engine, train.data, spec, telemetry)
    telemetry.attention(engine.module.layout, engine.module.attention)
    return engine


def add_reference(
    spec: DPOJobSpec,
    work: WorkDir,
    splits: list[Examples],
    beginning: Beginning,
    engine: Engine,
    ranks: Ranks,
    model: str,
    look: Surprise | None,
    telemetry: Telemetry,
    stop: StopRequest,
) -> None:
    """Add the log-probs of the policy's own start to the splits, of which the first is the training pairs. Collective.

    model: digest of the initial model. look: at the training pairs.
    """
    layout, digest = engine.module.layout, beginning.reference_digest(model)
    reference = References(spec, beginning.reference, ranks, work.reference, digest, layout, telemetry, stop)
    for examples in splits:
        reference.add_to(examples, budget=spec.eval_batch, look=look if examples is splits[0] else None)


def add_other_reference(
    spec: DPOJobSpec,
    work: WorkDir,
    splits: list[Examples],
    world: World,
    ranks: Ranks,
    digest: str,
    telemetry: Telemetry,
    stop: StopRequest,
) -> None:
    """Add the log-probs of another reference model to the splits. Collective.

    The model is loaded only when they are not in the cache, and is no longer in memory afterwards.
    """
    plain = spec.model_copy(
        update={
            "adapter": Adapter(),
            "model": spec.model.model_copy(update={"adapter": None}),
            "training": spec.training.model_copy(update={"gradient_checkpointing": False}),
        }
    )
    opened: list[Engine] = []

    def open_engine() -> Engine:
        if not opened:
            opened.append(load_engine(plain, work.reference_model, world, splits[0], ranks, telemetry, trained=False))
        return opened[0]

    # The layout that its batches have is known when it is loaded. What the job asks for decides it, so that stands for it.
    layout = spec.training.packing
    reference = References(spec, open_engine, ranks, work.reference, digest, layout, telemetry, stop)
    for examples in splits:
        reference.add_to(examples, budget=spec.eval_batch)
    if opened:
        opened.pop().close()


def open_checkpoints(
    spec: DPOJobSpec,
    work: WorkDir,
    train: Examples,
    digests: dict[str, str],
    attempt: int,
    ranks: Ranks,
    trust: Trust | None,
    telemetry: Telemetry,
) -> Checkpoints:
    """Fence older attempts. Collective. digests: of the models. Raises TrainerError PEER_LOST when a newer attempt has begun."""
    checkpoints = Checkpoints(
        work.checkpoints,
        attempt,
        identity(spec, dataset=train.data.digest, **digests),
        keep_last=spec.checkpoint.keep_last,
        keep_best=spec.checkpoint.keep_best,
        ranks=ranks,
        trust=trust,
        background=ranks.own_group() if spec.checkpoint.asynchronous else None,
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
    if uses_cuda():
        checkpoints.reserve(state)
    return restored


def begin_telemetry(
    spec: DPOJobSpec,
    plan: Plan,
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
