"""Time of one optimizer step: matrix products, the optimizer's passes over memory, and the ranks' messages."""

import math
from dataclasses import dataclass

from dpo_operator.api.method import MethodName
from dpo_operator.api.model import AdapterType
from dpo_operator.api.models.hardware import Device
from dpo_operator.api.models.shape import ModelShape
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.sizing.activations import BYTES, chunk_rows
from dpo_operator.sizing.memory import LIVE
from dpo_operator.sizing.trained import adapted, in_four_bits, trained_parameters
from dpo_operator.sizing.work import Pairs, Work, typical

# A host's memory and its link to a GPU, bytes per second, for what is offloaded.
HOST_BANDWIDTH, HOST_LINK = 100e9, 25e9
# What a layer costs in each micro-batch in addition to arithmetic, seconds: kernels that are started; with several GPUs also hooks that gather
# its weights, and with adapters twice as many modules. Not measured on a GPU.
LAYER_OVERHEAD, LAYER_OVERHEAD_OF_SEVERAL = 2e-3, 5e-3
# What a pair costs in each layer in addition, where each pair has attention calls of its own, seconds: tens of kernels.
PAIR_OVERHEAD = 4e-4
# One way, for each GPU, between nodes: a 400 Gbit/s port for each.
NODE_LINK = 50e9
# Share of a node's ports together that collectives reach: data enters a node once and is handed on inside it.
NODE_SHARE = 0.7
# Share of the computation behind which messages and the starting of kernels are hidden.
HIDDEN = 0.85
# Speed of a job in relation to one with all weights of a dense model: small kernels for adapters, small products for each expert. Assumed.
OF_ADAPTERS, OF_EXPERTS = 0.85, 0.6


@dataclass(frozen=True)
class StepTime:
    """One step of the whole job, seconds.

    body, head, optimizer: each rank's computation. overhead: of the layers, in addition to arithmetic. waiting: exposed communication,
    in which nothing is computed. reference: computing the reference's log-probs of a step's pairs, once for the whole run; not part of
    a step. ranking: the same of one ranking by training.selection. micro_batches: of each rank. tokens: that go through the model in a step, over all ranks. flops: of all ranks, in a
    step.
    """

    body: float
    head: float
    optimizer: float
    overhead: float
    waiting: float
    reference: float
    ranking: float
    micro_batches: int
    tokens: float
    flops: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.body + self.head + self.optimizer + self.overhead + self.waiting


def estimate(
    shape: ModelShape, spec: DPOJobSpec, pairs: Pairs, device: Device, *, node_link: float = NODE_LINK
) -> StepTime:
    """Time of a step with mean pairs. node_link: bytes per second of each GPU to other nodes, one way."""
    world, batch, precision = spec.world_size, spec.training.global_batch_size, spec.training.precision
    each = batch / world
    work = typical(spec, pairs, spec.micro_batch, math.ceil(each))
    count = math.ceil(each / work.pairs)
    # The last micro-batch of a rank may be smaller; the step's pair count is fixed.
    share = each / work.pairs
    body, head = flops(shape, spec, work)
    kto = any(loss.name is MethodName.KTO for loss in spec.method.losses)
    counts_tokens = spec.training.router_aux_loss is not None and count > 1
    # KTO's estimate of the KL divergence takes a forward pass over the answers to other prompts, the routers' loss one that counts the experts' tokens.
    for _ in range(kto + counts_tokens):
        forward_body, forward_head = _forward(shape, work)
        body, head = body + forward_body, head + forward_head
    rate = device.rate(precision) * _slower(shape, spec)
    body_seconds, head_seconds = share * body / rate, share * head / rate
    sending = count * _sending(shape, spec, device, node_link)
    # On GPUs weights are fetched ahead while layers compute.
    hidden = HIDDEN * (body_seconds + head_seconds) if spec.gpus_per_node else 0.0
    forward = share * sum(_forward(shape, work))
    return StepTime(
        body=body_seconds, head=head_seconds, optimizer=_update_seconds(shape, spec, device),
        overhead=_exposed(spec, shape.layers * _overhead(spec, count, each), body_seconds + head_seconds), waiting=max(0.0, sending - hidden),
        reference=forward / rate if spec.method.needs_reference else 0.0,
        ranking=forward / rate if spec.training.selection is not None and spec.training.selection.has_pass else 0.0,
        micro_batches=count, tokens=batch / work.pairs * work.tokens, flops=world * share * (body + head),
    )  # fmt: skip


def receiving(size: float, spec: DPOJobSpec, device: Device, node_link: float) -> float:
    """Seconds in which each rank gets from the others what all have together. size: bytes of all of it."""
    link, world = device.link, spec.world_size
    if spec.nodes > 1:
        link = min(link, max(1, spec.gpus_per_node) * node_link * (NODE_SHARE if spec.gpus_per_node else 1))
    return size * (world - 1) / world / link if world > 1 else 0.0


def _slower(shape: ModelShape, spec: DPOJobSpec) -> float:
    """Share of a device's usual speed that this model and what is trained of it reach on a GPU."""
    if not spec.gpus_per_node:
        return 1.0
    experts = any(matrix.active < matrix.count and not matrix.adaptable for matrix in shape.matrices)
    return (OF_EXPERTS if experts else 1.0) * (1.0 if spec.adapter.type is AdapterType.NONE else OF_ADAPTERS)


def _exposed(spec: DPOJobSpec, overhead: float, computing: float) -> float:
    """What overhead adds to a step, seconds: on GPUs the host starts kernels while others run."""
    if not spec.gpus_per_node:
        return overhead
    return max(0.0, overhead - computing) + (1 - HIDDEN) * min(overhead, computing)


def _overhead(spec: DPOJobSpec, micro_batches: int, pairs: float) -> float:
    """Seconds of a layer in a step in addition to arithmetic. pairs: of a rank."""
    if not spec.gpus_per_node:
        return micro_batches * LAYER_OVERHEAD
    once = LAYER_OVERHEAD if spec.world_size == 1 else LAYER_OVERHEAD_OF_SEVERAL
    by_pair = spec.model.attention == "sdpa" or spec.training.precision == "fp32"
    adapters = 1 if spec.adapter.type is AdapterType.NONE else 2
    return micro_batches * once * adapters + (pairs * PAIR_OVERHEAD if by_pair else 0.0)


def flops(shape: ModelShape, spec: DPOJobSpec, work: Work) -> tuple[float, float]:
    """Floating-point operations of one forward and backward pass over a micro-batch: of the layers, and of the output layer.

    A product of the forward pass costs two more in the backward pass: one for the gradient of its input, one for that of its
    weight, which frozen weights don't have. Checkpointing computes the layers' forward pass once more, chunks the output layer's.
    """
    body, head = _forward(shape, work)
    attention = _attention(shape, work)
    full = spec.adapter.type is AdapterType.NONE
    weights = body - attention
    found = weights * (3 if full else 2) + 3 * attention
    if not full:
        found += (
            6
            * work.tokens
            * sum(m.active * spec.adapter.rank * (m.inputs + m.outputs) for m in adapted(shape, spec.adapter))
        )
    if spec.training.gradient_checkpointing:
        found += body
    in_chunks = work.answers > chunk_rows(shape, spec)
    return found, head * (2 + int(full) + int(in_chunks))


def _forward(shape: ModelShape, work: Work) -> tuple[float, float]:
    """Operations of a forward pass: of the layers, and of the output layer, which sees the answers alone."""
    body = 2 * shape.active * work.tokens + _attention(shape, work)
    return body, 2 * shape.embedding * work.answers


def _attention(shape: ModelShape, work: Work) -> float:
    """Operations on scores and values: each token with all those before it in its sequence, half of the square."""
    sides = [(work.prompt, answer) for answer in (work.chosen, work.rejected) if answer]
    seen = 0.0
    for number, (prompt, answer) in enumerate(sides):
        whole = (prompt + answer) ** 2 / 2
        seen += whole - (prompt**2 / 2 if work.layout == "shared" and number else 0.0)
    return 4 * shape.queries * shape.layers * work.pairs * seen


def _sending(shape: ModelShape, spec: DPOJobSpec, device: Device, node_link: float) -> float:
    """Seconds of a micro-batch's messages: all weights for the forward pass, again for the backward pass unless they are kept, and
    gradients."""
    elements = shape.parameters - in_four_bits(shape, spec.adapter)
    weights = BYTES[spec.training.precision] * elements
    gradients = BYTES[spec.training.gradient_reduction] * trained_parameters(shape, spec.adapter)
    once = receiving(weights, spec, device, node_link)
    again = 0.0 if elements <= LIVE else once
    if again and spec.training.hierarchical_partition:
        again = weights * (spec.gpus_per_node - 1) / spec.gpus_per_node / device.link
    return once + again + receiving(gradients, spec, device, node_link)


def _update_seconds(shape: ModelShape, spec: DPOJobSpec, device: Device) -> float:
    """AdamW reads weights, gradients and two moments, and writes weights, moments and the model's copy."""
    share = trained_parameters(shape, spec.adapter) / spec.world_size
    moved = share * (4 * 7 + BYTES[spec.training.precision])
    if spec.gpus_per_node and spec.training.offload != "none":
        gpus = spec.gpus_per_node
        return moved * gpus / HOST_BANDWIDTH + share * (4 + BYTES[spec.training.precision]) / HOST_LINK
    return moved / device.bandwidth
