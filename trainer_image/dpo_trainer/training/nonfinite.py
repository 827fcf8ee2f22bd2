"""Policy for steps whose loss or gradient is not finite (spec.training.nonFinite)."""

from dataclasses import dataclass, field
from typing import Literal

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.training import NonFinite
from dpo_trainer.runtime.errors import TrainerError

_ADVICE = "Lower training.learningRate, set training.maxGradNorm, or use precision fp32 to find out whether rounding is the cause."


@dataclass
class NonFinitePolicy:
    """Decides whether a bad step is skipped, rolled back or ends the run.

    skipped: steps left out so far, in the order in which they failed; the checkpoint keeps them.
    """

    rule: NonFinite
    skipped: list[int] = field(default_factory=list)

    def decide(self, step: int, what: str) -> Literal["skip", "rollback"]:
        """What to do about a step in which `what` is not finite; its pairs are left out from now on.

        Raises TrainerError NON_FINITE when the action is fail, or the limit is reached.
        """
        found = f"Step {step}: expected finite numbers, found NaN or infinity in {what}; no weight was changed and nothing of this step was saved."
        if self.rule.action == "fail":
            raise TrainerError(ExitCode.NON_FINITE, f"{found} {_ADVICE}")
        if len(self.skipped) >= self.rule.max:
            steps = ", ".join(map(str, self.skipped))
            raise TrainerError(
                ExitCode.NON_FINITE,
                f"{found} training.nonFinite.max allows {self.rule.max} of them, and there were steps {steps} before. {_ADVICE}",
            )
        self.skipped.append(step)
        return self.rule.action
