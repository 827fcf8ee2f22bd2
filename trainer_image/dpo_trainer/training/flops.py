"""How much of the GPUs a step uses: model FLOPs utilization (Chowdhery et al. 2022, 2204.02311, appendix B)."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from dpo_operator.api.model import AdapterType
from dpo_operator.api.models import hardware
from dpo_operator.api.models.config import ModelConfigError, shape_of
from dpo_operator.api.models.shape import ModelShape
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.batches.batch import Layout
from dpo_trainer.batches.packing import tokens_of
from dpo_trainer.batches.sampler import Lengths
from dpo_trainer.distributed.world import World


@dataclass(frozen=True)
class Throughput:
    """What a step computes, and what could be computed meanwhile.

    frozen: whether only adapters are trained, so that weights need no gradient. peak: FLOP/s of all ranks together.
    """

    shape: ModelShape
    layout: Layout
    frozen: bool
    peak: float

    @classmethod
    def of(cls, spec: DPOJobSpec, model: Path, layout: Layout, world: World) -> "Throughput | None":
        """For this run; None on CPUs, on GPUs without a known peak, and for models without known dimensions."""
        device = hardware.of_name(torch.cuda.get_device_name(world.device)) if world.device.type == "cuda" else None
        if device is None:
            return None
        try:
            shape = shape_of(json.loads((model / "config.json").read_text()))
        except (OSError, ValueError, ModelConfigError):
            return None
        peak = device.peak(spec.training.precision) * world.world_size
        return cls(shape, layout, spec.adapter.type is not AdapterType.NONE, peak)

    def utilization(self, lengths: Lengths, seconds: float) -> float:
        """Share of the peak. lengths: int64 [pairs, 3], see packing.tokens_of. seconds: that the step took."""
        return self.step_flops(lengths) / (self.peak * seconds)

    def step_flops(self, lengths: Lengths) -> float:
        """Floating-point operations of one step's forward and backward pass; what checkpointing computes again does not count."""
        prompt, answers = lengths[:, 0].astype(float), lengths[:, 1:].astype(float)
        tokens, scored = float(tokens_of(lengths, self.layout).sum()), float(answers.sum())
        # Query-key pairs: each answer looks at its prompt and at what is before it in itself.
        looked_at = (answers * (prompt[:, None] + answers / 2)).sum()
        copies = 1.0 if self.layout == "shared" else (answers > 0).sum(axis=1)
        looked_at += (copies * prompt * prompt / 2).sum()
        shape = self.shape
        forward = 2 * (shape.active * tokens + shape.embedding * scored)
        forward += 4 * shape.layers * shape.queries * float(looked_at)
        # Backward: gradients of the inputs, and of the weights.
        return forward * (2 if self.frozen else 3)
