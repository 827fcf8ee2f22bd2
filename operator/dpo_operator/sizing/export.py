"""What a job writes to its volume, and what its export takes: one process on the CPU, see the trainer's export/."""

from dataclasses import dataclass

from dpo_operator.api.model import AdapterType
from dpo_operator.api.models.shape import ModelShape
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.sizing.activations import BYTES
from dpo_operator.sizing.memory import CPU_RUNTIME, PEFT_RUNTIME
from dpo_operator.sizing.trained import FOUR_BIT_BYTES, in_four_bits, trained_parameters
from dpo_operator.sizing.work import Pairs

# A model of more bytes is not loaded as a whole to check its export; the same as in the trainer's export/check.py.
LARGE, PAIRS_OF_LARGE = 24 << 30, 2


@dataclass(frozen=True)
class Stored:
    """Bytes. checkpoint: of each rank's file in a checkpoint. export: of all files of the export. memory: of the export's process."""

    checkpoint: float
    export: float
    memory: float


def estimate(shape: ModelShape, spec: DPOJobSpec, pairs: Pairs) -> Stored:
    """What is written after training, and while."""
    adapter = spec.adapter.type is not AdapterType.NONE
    trained = trained_parameters(shape, spec.adapter)
    whole = shape.file_bytes * shape.parameters
    merged = whole if adapter and spec.export.merge else 0
    return Stored(
        checkpoint=12 * trained / spec.world_size,
        export=4 * trained + merged if adapter else whole,
        memory=CPU_RUNTIME + (PEFT_RUNTIME if adapter else 0) + _in_memory(shape, spec, pairs),
    )


def _in_memory(shape: ModelShape, spec: DPOJobSpec, pairs: Pairs) -> float:
    """The largest step of the export: the model's file is written, loaded and checked, and an adapter merged."""
    size, adapter = BYTES[spec.training.precision], spec.adapter.type is not AdapterType.NONE
    four_bit = in_four_bits(shape, spec.adapter)
    loaded = size * (shape.parameters - four_bit) + FOUR_BIT_BYTES * four_bit
    # Trained tensors as they are in the checkpoint and in the export: one at a time, adapters all together.
    compared = (
        8 * trained_parameters(shape, spec.adapter) if adapter else (shape.file_bytes + size) * shape.largest_matrix
    )
    if loaded > LARGE and not four_bit and not shape.joins_experts:
        # Of both answers of the pairs, with two copies of one answer's in float32. The shortest pairs are taken for mean ones.
        length = pairs.prompt + max(pairs.chosen, pairs.rejected)
        logits = (2 * PAIRS_OF_LARGE * size + 8) * length * shape.vocabulary
        checking = 2 * size * shape.largest_matrix + logits
    else:
        checking = loaded
    merging = shape.file_bytes * shape.parameters if adapter and spec.export.merge else 0
    return max(checking, size * shape.parameters if merging else 0, merging) + compared
