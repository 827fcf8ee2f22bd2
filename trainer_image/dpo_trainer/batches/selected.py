"""Which pairs each optimizer step uses when only some of them are trained on: pure functions of the settings and of committed lists.

The first epoch begins with a warm-up on random pairs. What comes after it, and in every later epoch, needs the list of the pairs that are kept. Their
number is known beforehand, so are the steps of the run.
"""

import math

import numpy as np
import numpy.typing as npt

from dpo_operator.api.trainingparts.selection import Selection
from dpo_trainer.batches.sampler import Indices, epoch_order

# For each pair: how easy it is. Larger is easier.
Ease = npt.NDArray[np.float64]
# Of the stream of random numbers that decides between pairs of one value; the streams of epochs count up from 0.
_TIES = 2**63


class SelectedPlan:
    """How the kept pairs are spread over the optimizer steps; batches.sampler.StepPlan without a selection.

    pairs: size of the training set. lists: the pairs that an epoch's ranking kept, hardest first, by epoch; what is not known yet is added.
    """

    def __init__(
        self,
        pairs: int,
        global_batch_size: int,
        selection: Selection,
        *,
        seed: int,
        shuffle: bool,
        lists: dict[int, Indices] | None = None,
    ) -> None:
        self.pairs, self.global_batch_size, self.selection = pairs, global_batch_size, selection
        self.seed, self.shuffle = seed, shuffle
        self.lists = lists if lists is not None else {}
        self.warmup = selection.warmup_pairs(pairs, global_batch_size)
        self._ordered: tuple[int, Indices] | None = None

    def total_steps(self, *, epochs: float, max_steps: int | None) -> int:
        """Optimizer steps of the whole run; max_steps goes before epochs."""
        if max_steps is not None:
            return max_steps
        return self.selection.steps(epochs, self.pairs, self.global_batch_size)

    def step(self, step: int) -> Indices:
        """Pairs of one optimizer step: int64 [at most global_batch_size]. Steps are counted from 1. The list that it needs must be known."""
        epoch, position = self._place(step)
        start = position * self.global_batch_size
        stop = start + self.global_batch_size
        if not epoch and start < self.warmup:
            return self._shuffled(0)[start : min(stop, self.warmup)]
        if self._ordered is None or self._ordered[0] != epoch:
            self._ordered = epoch, self._order(epoch)
        return self._ordered[1][start:stop]

    def epoch(self, step: int) -> float:
        """Passes over the kept pairs that are finished after a step."""
        epoch, position = self._place(step + 1)
        return epoch + position * self.global_batch_size / self._epoch_pairs(epoch)

    def pairs_seen(self, step: int) -> int:
        """Pairs used in all steps up to and with this one, repeats counted."""
        epoch, position = self._place(step + 1)
        full = self._epoch_pairs(0) + (epoch - 1) * self._epoch_pairs(1) if epoch else 0
        return full + position * self.global_batch_size

    def needs(self, step: int) -> int | None:
        """Epoch of the list that a step needs; None in the warm-up."""
        epoch, position = self._place(step)
        if not epoch and position * self.global_batch_size < self.warmup:
            return None
        return epoch if self.selection.refresh == "epoch" else 0

    def ranked(self, epoch: int) -> Indices:
        """Pairs that are ranked for an epoch's list: those that the warm-up left in the first, all in later ones."""
        return np.sort(self._shuffled(epoch)[0 if epoch else self.warmup :])

    def kept(self, epoch: int) -> int:
        """How many pairs an epoch's list has."""
        return len(self.selection.kept(self.pairs if epoch else self.pairs - self.warmup))

    def _place(self, step: int) -> tuple[int, int]:
        """Epoch, and step in it counted from 0, of a step."""
        first, later = (math.ceil(self._epoch_pairs(epoch) / self.global_batch_size) for epoch in (0, 1))
        if step <= first:
            return 0, step - 1
        epoch, position = divmod(step - 1 - first, later)
        return epoch + 1, position

    def _epoch_pairs(self, epoch: int) -> int:
        return self.selection.epoch_pairs(epoch, self.pairs, self.global_batch_size)

    def _shuffled(self, epoch: int) -> Indices:
        return epoch_order(self.pairs, seed=self.seed, epoch=epoch, shuffle=self.shuffle)

    def _order(self, epoch: int) -> Indices:
        """Order of the pairs of an epoch: int64, each index once."""
        has_own = bool(epoch) and self.selection.refresh == "epoch"
        kept, shuffled = self.lists[epoch if has_own else 0], self._shuffled(epoch)
        # Pairs of the warm-up were not ranked: they stay, unless a later ranking has them too.
        warmup = self._shuffled(0)[: 0 if has_own else self.warmup]
        if self.selection.order == "random":
            return shuffled[np.isin(shuffled, np.concatenate([warmup, kept]))]
        ordered = kept[::-1] if self.selection.order == "easyFirst" else kept
        return np.concatenate([shuffled[np.isin(shuffled, warmup)], ordered])


def choose(ease: Ease, ranked: Indices, kept: range, *, seed: int) -> Indices:
    """The pairs that are kept, hardest first: int64 [len(kept)].

    ease: float64 [ranked], larger is easier; what is not finite is hardest. ranked: the pairs. kept: places in the ranking. seed: decides
    between pairs of equal ease, so that their place in the data does not.
    """
    count = int(ranked.max()) + 1 if len(ranked) else 0
    ties = np.random.Philox(key=np.array([seed, _TIES], dtype=np.uint64)).random_raw(count)[ranked]
    values = np.where(np.isfinite(ease), ease, -np.inf)
    return ranked[np.lexsort((ties, values))][kept.start : kept.stop]
