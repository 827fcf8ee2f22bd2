"""Sample answers: when they are taken, how they are decoded, and what their texts show."""

from dpo_trainer.training.sampling.of_run import samples_of
from dpo_trainer.training.sampling.samples import Samples
from dpo_trainer.training.sampling.sampling_time import SamplingTime

__all__ = ["Samples", "SamplingTime", "samples_of"]
