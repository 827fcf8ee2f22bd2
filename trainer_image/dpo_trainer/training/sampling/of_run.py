"""The sample answers of a training run."""

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.engine.engine import Engine
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.training.examples import Examples
from dpo_trainer.training.sampling.samples import Samples
from dpo_trainer.training.sampling.sampling_time import SamplingTime
from dpo_trainer.training.shortage import Shortage


def samples_of(
    spec: DPOJobSpec,
    work: WorkDir,
    engine: Engine,
    ranks: Ranks,
    evaluation: Examples | None,
    total_steps: int,
    resumed_step: int,
    shortage: Shortage,
) -> Samples:
    """Answers to prompts of the evaluation data, from the step that the run resumes from; a reward model answers nothing."""
    answers = evaluation is not None and not spec.method.trains_reward_model
    return Samples(
        engine,
        ranks,
        work,
        spec,
        evaluation.data if evaluation is not None and answers else None,
        budget=spec.eval_batch,
        time=SamplingTime(total_steps, spec.eval_every_steps, resumed_step=resumed_step),
        shortage=shortage,
        resumed_step=resumed_step,
    )
