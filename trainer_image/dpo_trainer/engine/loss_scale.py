"""The factor that keeps float16 gradients from vanishing (Micikevicius et al. 2017, 1710.03740), as a pure function of the past steps.

DeepSpeed has a dynamic scale of its own, but doubles it before it divides the same step's gradient by it: one update in
each window would be half as large. So DeepSpeed gets a fixed scale, and this module adjusts it.
"""

from dataclasses import dataclass

_GROWS_AFTER = 1000
_MOST_OVERFLOWS = 20


@dataclass(frozen=True)
class LossScale:
    """The factor that losses are multiplied by, and gradients divided by.

    updates: number since the factor last changed. overflows: current number in a row.
    """

    factor: float = 2.0**16
    updates: int = 0
    overflows: int = 0

    def after(self, *, applied: bool) -> "LossScale":
        """The scale for the next attempt. applied: the gradient was finite, and the weights were updated."""
        if not applied:
            return LossScale(self.factor / 2, 0, self.overflows + 1)
        if self.updates + 1 >= _GROWS_AFTER:
            return LossScale(self.factor * 2)
        return LossScale(self.factor, self.updates + 1)

    @property
    def is_hopeless(self) -> bool:
        """Whether the gradient is infinite for another reason than the scale: _MOST_OVERFLOWS halvings make any finite one fit."""
        return self.overflows >= _MOST_OVERFLOWS
