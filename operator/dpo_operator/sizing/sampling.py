"""Time of the sample answers of one evaluation, as the trainer decodes them: training/sampling."""

import math
from dataclasses import dataclass

from dpo_operator.api.models.hardware import Device
from dpo_operator.api.models.shape import ModelShape
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.sizing.activations import BYTES
from dpo_operator.sizing.memory import Memory
from dpo_operator.sizing.speed import receiving
from dpo_operator.sizing.trained import in_four_bits
from dpo_operator.sizing.work import Pairs

# Free memory that the trainer wants to gather a model, in relation to its weights; most tokens of an answer where it has not so much. The same as in
# engine/engine.py and training/sampling/samples.py.
ROOM, FEW = 1.25, 32
# What a layer costs for each token in addition, seconds: its kernels are small. Assumed.
LAYER_OVERHEAD = 5e-4


@dataclass(frozen=True)
class Sampling:
    """seconds: of the answers of one evaluation. tokens: the most of an answer. whole: whether each rank has all weights meanwhile."""

    seconds: float
    tokens: int
    whole: bool


def estimate(
    shape: ModelShape, spec: DPOJobSpec, pairs: Pairs, device: Device, memory: Memory, *, node_link: float
) -> Sampling:
    """Each token of a batch takes a pass over all weights, which are read from memory; its answers are decoded together."""
    wanted, world = spec.evaluation.sample_tokens, spec.world_size
    partitioned = BYTES[spec.training.precision] * (shape.parameters - in_four_bits(shape, spec.adapter))
    lasting = sum(memory.lasting.values())
    whole = world == 1 or device.memory is None or lasting + ROOM * partitioned <= device.memory
    tokens = wanted if whole else min(wanted, FEW)
    copies = 2 if spec.diagnosis.enabled else 1
    each = math.ceil(spec.evaluation.samples / world)
    together = max(1, spec.eval_batch.tokens // max(1, int(copies * (pairs.prompt + tokens))))
    together = min(each, together, spec.eval_batch.pairs or each)
    batches = math.ceil(each / together) if together else 0
    products = 2 * shape.active * copies * together / device.rate(spec.training.precision)
    one = max(partitioned / device.bandwidth, products) + shape.layers * LAYER_OVERHEAD
    gather = receiving(partitioned, spec, device, node_link)
    passes = batches * tokens
    return Sampling(passes * one + gather * (min(1, passes) if whole else passes), tokens, whole)
