"""How a job's pairs are spread over its steps."""

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.batches.sampler import StepPlan
from dpo_trainer.batches.selected import SelectedPlan
from dpo_trainer.runtime.errors import invalid_configuration

Plan = StepPlan | SelectedPlan


def plan_of(spec: DPOJobSpec, pairs: int) -> Plan:
    """The plan of a job. Raises TrainerError INVALID_CONFIGURATION when so many pairs can't be chosen from."""
    training, batch = spec.training, spec.training.global_batch_size
    if training.selection is None:
        return StepPlan(pairs, batch, seed=training.seed, shuffle=training.shuffle)
    if problem := training.selection.problem(pairs, batch, epochs=training.epochs, max_steps=training.max_steps):
        raise invalid_configuration(f"spec.training.selection: {problem}")
    return SelectedPlan(pairs, batch, training.selection, seed=training.seed, shuffle=training.shuffle)
