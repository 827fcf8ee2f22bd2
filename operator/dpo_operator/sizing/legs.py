"""What a sweep costs beside one training: time for each leg, and room on the volume for its checkpoints."""

from dataclasses import dataclass

from dpo_operator.api.types import DPOJobSpec
from dpo_operator.sizing.export import Stored


@dataclass(frozen=True)
class LegsCost:
    """Of the whole sweep. disk: bytes of the checkpoints that legs leave on the volume, beside the job's own export."""

    legs: int
    disk: float

    @property
    def says(self) -> str:
        """A sentence about what needs no model to be known."""
        return f"spec.sweep: {self.legs} trainings, one after another, on one preparation; checkpoints of all of them stay on the volume"


def estimate(spec: DPOJobSpec, stored: Stored) -> LegsCost | None:
    """None for a job without a sweep. The best checkpoint may be none of the newest."""
    if spec.sweep is None:
        return None
    kept = spec.checkpoint.keep_last + (spec.checkpoint.keep_best if spec.exports_best else 0)
    return LegsCost(spec.sweep.legs, spec.sweep.legs * kept * stored.checkpoint * spec.world_size)
