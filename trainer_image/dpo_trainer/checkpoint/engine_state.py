"""What a checkpoint needs from the training engine. The engine implements it, so this package knows nothing of DeepSpeed."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from dpo_trainer.checkpoint.manifest import Parameter
from dpo_trainer.checkpoint.shard import Entry

ReadSlice = Callable[[str, str, int, int], Tensor]


class EngineState(Protocol):
    """The trained weights and the optimizer state that a rank holds, as named slices."""

    def parameters(self) -> dict[str, Parameter]:
        """Every trained parameter as a whole, by name."""
        ...

    def adam_step(self) -> int:
        """Number of updates that the optimizer has counted; 0 before the first."""
        ...

    def entries(self) -> list[Entry]:
        """This rank's slices to write, named kind/parameter (see slices.KINDS). Empty slices are left out."""
        ...

    def restore(self, read: ReadSlice, adam_step: int) -> None:
        """Set this rank's slices, and the weights that the forward pass uses. Collective.

        read: (kind, name, start, end) -> float32 [end - start] on the CPU.
        """
        ...
