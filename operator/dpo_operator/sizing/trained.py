"""Which weights a job trains, and what autograd has to keep for them."""

from dpo_operator.api.models.shape import Matrix, ModelShape, Reads
from dpo_operator.api.training import Adapter, AdapterType

ALL = "all-linear"


def adapted(shape: ModelShape, adapter: Adapter) -> tuple[Matrix, ...]:
    """Matrices that get an adapter; none when all weights are trained."""
    if adapter.type is AdapterType.NONE:
        return ()
    wanted = set(adapter.target_modules)
    # A target may be a longer part of the path, such as self_attn.q_proj.
    ends = {target.rpartition(".")[2] for target in wanted}
    return tuple(m for m in shape.matrices if m.adaptable and (ALL in wanted or m.name in ends))


def trained_parameters(shape: ModelShape, adapter: Adapter) -> int:
    """Elements that the optimizer updates."""
    if adapter.type is AdapterType.NONE:
        return shape.parameters
    magnitudes = int(adapter.dora)
    return sum(
        m.count * (adapter.rank * (m.inputs + m.outputs) + magnitudes * m.outputs) for m in adapted(shape, adapter)
    )


def kept_inputs(shape: ModelShape, adapter: Adapter) -> frozenset[Reads]:
    """Intermediate results that some trained matrix takes as its input, so that its gradient needs them."""
    trained = shape.matrices if adapter.type is AdapterType.NONE else adapted(shape, adapter)
    return frozenset(m.reads for m in trained)
