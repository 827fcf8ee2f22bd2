"""Peak memory of one rank over its phases.

Sizes are those of the trainer's ZeRO-3 engine (Rajbhandari et al. 2019, 1910.02054): weights in the model's precision, gradients,
master weights and optimizer state in float32, all partitioned over the ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dpo_operator.api.model import AdapterType
from dpo_operator.api.models.shape import ModelShape
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.sizing.activations import BYTES, with_gradient, without_gradient
from dpo_operator.sizing.trained import FOUR_BIT_BYTES, in_four_bits, trained_parameters
from dpo_operator.sizing.work import Pairs, largest

MIB = 1 << 20
# Names of the phase that constructs the engine, and of the save buffer, which does not exist yet in that phase.
CONSTRUCTION, SAVING = "making the engine", "copy for saves"
# Phases before the engine that trains is there.
REFERENCE = "another reference model"
_ALONE = frozenset({"loading", REFERENCE})
# Gathered elements that DeepSpeed keeps instead of gathering them again.
LIVE = 1_000_000_000
# Most elements of a bucket of gradients.
LARGEST_BUCKET = 250_000_000
# Elements that the optimizer updates at a time; their gradients are one tensor then.
GROUP = 1 << 24
# The process itself, measured on a CPU: Python, torch, transformers and DeepSpeed with all that they load, at the end and when the
# model is read; PEFT comes on top.
CPU_RUNTIME, CPU_RUNTIME_WHILE_LOADING, PEFT_RUNTIME = 810 * MIB, 690 * MIB, 50 * MIB
# Heap fragmentation until the engine is constructed, as a share of the bytes of the weight files. Measured on a CPU.
FRAGMENTED = 0.75
# glibc takes tensors below this size from its heap, where freed tensors leave holes that later
# ones do not fit into. Lost are these shares of the kept tensors and of one layer's part of them, and all that adapters drop. Measured on a CPU,
# with and without recomputation, and with adapters.
HEAP_PIECE, LOST_OF_KEPT, LOST_LAYERS = 32 * MIB, 0.5, 6
# CUDA's context, cuBLAS' workspaces and NCCL's buffers, and what the caching allocator loses between blocks. Not measured.
GPU_RUNTIME, GPU_LOSS = 2048 * MIB, 0.05


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device, and in the memory of its host.

    lasting: parts resident in all phases. phases: the parts that each phase adds. host: parts in the host's memory,
    for a rank with a GPU.
    """

    lasting: Mapping[str, float]
    phases: Mapping[str, Mapping[str, float]]
    host: Mapping[str, float] = field(default_factory=dict)

    def total(self, phase: str) -> float:
        """Bytes in a phase; those before the lasting parts are all there name their own."""
        there = 0.0 if phase in _ALONE else sum(self.lasting.values())
        # The first save comes after the first step.
        return sum(self.phases[phase].values()) + there - (self.lasting.get(SAVING, 0) if phase == CONSTRUCTION else 0)

    @property
    def peak_phase(self) -> str:
        """The phase with the largest memory."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> float:
        """Bytes of the largest phase."""
        return self.total(self.peak_phase)

    @property
    def parts(self) -> dict[str, float]:
        """Parts of the peak, bytes."""
        lasting = {} if self.peak_phase in _ALONE else dict(self.lasting)
        if self.peak_phase == CONSTRUCTION:
            lasting.pop(SAVING, None)
        return {name: size for name, size in {**lasting, **self.phases[self.peak_phase]}.items() if size > 0}


def estimate(shape: ModelShape, spec: DPOJobSpec, pairs: Pairs, reference: ModelShape | None = None) -> Memory:
    """Memory of the rank that needs most. A job without GPUs has one process in each pod, and its memory is the host's.

    reference: another reference model, which is there before the policy.
    """
    on_gpu = spec.gpus_per_node > 0 and spec.training.device != "cpu"
    world, size = spec.world_size, BYTES[spec.training.precision]
    total, trained = shape.parameters, trained_parameters(shape, spec.adapter)
    if spec.adapter.type is not AdapterType.NONE:
        total += trained
    four_bit = in_four_bits(shape, spec.adapter)
    total -= four_bit
    share = trained / world
    offloaded = on_gpu and spec.training.offload != "none"
    # In float32 the master weights alias the weights, unless they are offloaded.
    shared = size == 4 and not offloaded
    training = {
        "fp32 master weights": 0 if shared else 4 * share, "fp32 gradients": 4 * share, "optimizer state": _state_bytes(spec) * share,
    }  # fmt: skip
    lasting = {
        "weights": size * total / world,
        **({"4-bit base": FOUR_BIT_BYTES * four_bit} if four_bit else {}),
        "gathered weights": size * min(total, LIVE + shape.largest_matrix) if world > 1 else 0,
        **(
            {"weights, the node's copy": size * total / spec.gpus_per_node}
            if spec.training.hierarchical_partition
            else {}
        ),
        # They stay whole on every rank.
        **({"adapters": size * trained} if world > 1 and spec.adapter.type is not AdapterType.NONE else {}),
        **({} if offloaded else training),
    }
    most_pairs = max(1.0, spec.training.global_batch_size / world)
    backward = with_gradient(shape, spec, largest(spec, pairs, spec.micro_batch, most_pairs), on_gpu=on_gpu)
    forward = without_gradient(
        shape, spec, largest(spec, pairs, spec.eval_batch, pairs.count or float("inf")), on_gpu=on_gpu
    )
    # A 4-bit matrix is unpacked for its product.
    unpacked = size * max(m.inputs * m.outputs for m in shape.matrices if m.adaptable) if four_bit else 0
    phases = {
        "backward pass": {
            "activations": backward.kept, "output layer": backward.head,
            "buffers": backward.transient + _gradients_in_flight(shape, spec, on_gpu=on_gpu) + unpacked,
        },
        "optimizer step": {
            "optimizer's buffers": 0 if offloaded else 4 * min(share, GROUP + shape.largest_matrix / world),
        },
        "evaluation and reference": {
            "activations": forward.kept, "output layer": forward.head, "buffers": forward.transient + unpacked,
        },
    }  # fmt: skip
    if reference is not None:
        phases[REFERENCE] = _of_reference(reference, spec, pairs, on_gpu=on_gpu)
    # Weights and two moments in float32, kept from the first save on while a thread writes them.
    saving = {SAVING: 12 * share} if spec.checkpoint.asynchronous else {}
    if on_gpu:
        dynamic = max(sum(parts.values()) for name, parts in phases.items() if name not in _ALONE) + sum(
            lasting.values()
        )
        lasting |= {"CUDA and NCCL": float(GPU_RUNTIME), "allocator": GPU_LOSS * dynamic}
        host = {"process": float(CPU_RUNTIME)} | saving | (training if offloaded else {})
        return Memory(lasting, phases, host)
    peft = 0 if spec.adapter.type is AdapterType.NONE else PEFT_RUNTIME
    lasting |= {"Python and libraries": float(CPU_RUNTIME + peft)} | saving
    files = shape.file_bytes * shape.parameters
    if backward.mlp_tensor < HEAP_PIECE:
        again = min(LOST_LAYERS, shape.layers) if spec.training.gradient_checkpointing else shape.layers
        lost = LOST_OF_KEPT * backward.kept + LOST_LAYERS * backward.layer + again * backward.dropped
        phases["backward pass"]["allocator"] = lost
    phases[CONSTRUCTION] = {
        "master weights, before they are shared": 4 * share if shared else 0,
        "allocator": FRAGMENTED * files,
    }
    phases["loading"] = _loading(shape, spec)
    return Memory(lasting, phases)


def _loading(shape: ModelShape, spec: DPOJobSpec) -> dict[str, float]:
    """Files are mapped while tensors are copied: by each rank its own parts, or all by one rank, which then has a part of them."""
    world, size, four_bit = spec.world_size, BYTES[spec.training.precision], in_four_bits(shape, spec.adapter)
    files, partitioned = shape.file_bytes * shape.parameters, shape.parameters - four_bit
    by_each = not four_bit and not shape.joins_experts
    return {
        "Python and libraries": float(CPU_RUNTIME_WHILE_LOADING),
        "weight files": files / world if by_each else float(files),
        "weights": size * (partitioned / world + (shape.largest_matrix if by_each else partitioned))
        + FOUR_BIT_BYTES * four_bit,
    }


def _of_reference(shape: ModelShape, spec: DPOJobSpec, pairs: Pairs, *, on_gpu: bool) -> dict[str, float]:
    """A model of which there are the weights alone, and its forward pass over the pairs."""
    world, size = spec.world_size, BYTES[spec.training.precision]
    budget = largest(spec, pairs, spec.eval_batch, pairs.count or float("inf"))
    forward = without_gradient(shape, spec, budget, on_gpu=on_gpu)
    parts = {
        "weights": size * shape.parameters / world,
        "gathered weights": size * min(shape.parameters, LIVE + shape.largest_matrix) if world > 1 else 0.0,
        "activations": forward.kept, "output layer": forward.head, "buffers": forward.transient,
    }  # fmt: skip
    if on_gpu:
        return parts | {"CUDA and NCCL": float(GPU_RUNTIME), "allocator": GPU_LOSS * sum(parts.values())}
    files = shape.file_bytes * shape.parameters
    return parts | {"Python and libraries": float(CPU_RUNTIME), "allocator": FRAGMENTED * files}


def _state_bytes(spec: DPOJobSpec) -> float:
    """Optimizer state of one element: two moments in float32, or in 8 bits with a float32 scale for each 256."""
    return 8.0 if spec.training.optimizer == "adamw" else 2 * (1 + 4 / 256)


def _gradients_in_flight(shape: ModelShape, spec: DPOJobSpec, *, on_gpu: bool) -> float:
    """The largest gradient as autograd makes it and as it is sent, in float32, and the bucket of the small ones."""
    size = BYTES[spec.training.precision]
    if spec.adapter.type is AdapterType.NONE:
        largest_one = shape.largest_matrix
    else:
        largest_one = spec.adapter.rank * max(shape.hidden, shape.inner)
    # On GPUs a bucket holds a layer, as in the trainer's engine/zero_config.py, and two are under way.
    bucket = max(min(shape.layer, LARGEST_BUCKET) if on_gpu else shape.hidden**2, 1_000_000)
    return (size + 4) * largest_one + 4 * min(bucket, trained_parameters(shape, spec.adapter)) * (2 if on_gpu else 1)
