"""Which weights a job trains, and what autograd has to keep for them."""

from dpo_operator.api.model import ALL_LINEAR, Adapter, AdapterType
from dpo_operator.api.models.shape import Matrix, ModelShape, Reads

# What is named in the place of an expert's matrix: its name before experts were one tensor; see the trainer's model/targets.py.
_FORMER = {"gate_up_proj": {"gate_proj", "w1"}, "down_proj": {"w2"}}


def adapted(shape: ModelShape, adapter: Adapter) -> tuple[Matrix, ...]:
    """Matrices that get an adapter; none when all weights are trained."""
    if adapter.type is AdapterType.NONE:
        return ()
    # A target may be a longer part of the path, such as self_attn.q_proj.
    ends = {target.rpartition(".")[2] for target in adapter.target_modules}
    return tuple(m for m in shape.matrices if _is_adapted(m, ends))


def _is_adapted(matrix: Matrix, ends: set[str]) -> bool:
    """Whether the last parts of the targets name a matrix."""
    path, _, last = matrix.name.rpartition(".")
    experts = path == "experts"
    named = last in ends or (experts and not ends.isdisjoint(_FORMER[last]))
    return named or (ALL_LINEAR in ends and (matrix.adaptable or experts))


def trained_parameters(shape: ModelShape, adapter: Adapter) -> int:
    """Elements that the optimizer updates."""
    if adapter.type is AdapterType.NONE:
        return shape.parameters
    magnitudes = int(adapter.dora)
    return sum(
        m.count * (adapter.rank * (m.inputs + m.outputs) + magnitudes * m.outputs) for m in adapted(shape, adapter)
    )


# Bytes of an element in NF4: half a byte, for each block of 64 a scale of one byte, and for each 256 of those a float32.
FOUR_BIT_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def in_four_bits(shape: ModelShape, adapter: Adapter) -> int:
    """Elements of the base that qlora holds in 4 bits, whole on every rank: those of linear layers, not of experts or embeddings."""
    if adapter.type is not AdapterType.QLORA:
        return 0
    return sum(m.count * m.inputs * m.outputs for m in shape.matrices if m.adaptable)


def kept_inputs(shape: ModelShape, adapter: Adapter) -> frozenset[Reads]:
    """Intermediate results that some trained matrix takes as its input, so that its gradient needs them."""
    trained = shape.matrices if adapter.type is AdapterType.NONE else adapted(shape, adapter)
    return frozenset(m.reads for m in trained)
