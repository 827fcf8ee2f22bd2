"""Which pairs each optimizer step uses, on which rank and in which micro-batch: pure functions of the settings.

Nothing here has state, so a resumed run needs no more than the number of its last step to continue at the next pair.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
# Numbers of tokens.
Lengths = npt.NDArray[np.int64]


@lru_cache(maxsize=2)
def epoch_order(pairs: int, *, seed: int, epoch: int, shuffle: bool) -> Indices:
    """Order of the pairs in one epoch: int64 [pairs], each index once, read-only.

    epoch: counted from 0; every epoch has an order of its own.
    Sorted by raw output of the Philox generator: NumPy guarantees that stream, and not that of `permutation`, to stay
    the same in later versions, and a run must be able to resume under a newer image.
    """
    order = np.arange(pairs, dtype=np.int64)
    if shuffle:
        keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(pairs)
        order = np.argsort(keys, kind="stable").astype(np.int64)
    order.flags.writeable = False  # the next step of the epoch gets the same array
    return order


@dataclass(frozen=True)
class StepPlan:
    """How the pairs are spread over the optimizer steps.

    pairs: size of the training set, > 0.
    global_batch_size: pairs of one step over all ranks. The last step of an epoch has what is left.
    """

    pairs: int
    global_batch_size: int
    seed: int
    shuffle: bool

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the pairs."""
        return math.ceil(self.pairs / self.global_batch_size)

    def total_steps(self, *, epochs: float, max_steps: int | None) -> int:
        """Optimizer steps of the whole run; max_steps goes before epochs."""
        return max_steps if max_steps is not None else max(1, math.ceil(epochs * self.steps_per_epoch))

    def step(self, step: int) -> Indices:
        """Pairs of one optimizer step: int64 [at most global_batch_size]. Steps are counted from 1."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        order = epoch_order(self.pairs, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        start = position * self.global_batch_size
        return order[start : start + self.global_batch_size]

    def epoch(self, step: int) -> float:
        """Passes over the pairs that are finished after a step."""
        full, steps = divmod(step, self.steps_per_epoch)
        return full + steps * self.global_batch_size / self.pairs

    def pairs_seen(self, step: int) -> int:
        """Pairs used in all steps up to and with this one, repeats counted."""
        full, steps = divmod(step, self.steps_per_epoch)
        return full * self.pairs + steps * self.global_batch_size
