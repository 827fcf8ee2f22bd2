"""Running out of memory in an evaluation or in sample answers costs them, and not the run.

One rank tries an evaluation again with half of the tokens at a time. Among several ranks the others are in a collective then and wait for this one, so the
attempt ends; what ran out is on the volume, and the next attempt does it with less. Three attempts are lost at most: the first after it has half of the tokens,
the second single pairs, and the third no evaluation.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.training import Budget
from dpo_trainer.distributed.memory import free_cached
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.runtime.errors import TrainerError, first_line
from dpo_trainer.runtime.files import commit
from dpo_trainer.runtime.termination import is_out_of_memory
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry

T = TypeVar("T")

# An evaluation is tried with 1/2, 1/4, 1/8 … of its tokens, at last with single pairs.
MOST_HALVINGS = 24
_NEVER = MOST_HALVINGS + 1


@dataclass
class Shortage:
    """What ran out of memory in this run, over all attempts.

    evaluation: how often an evaluation's tokens are halved; more than MOST_HALVINGS where not even single pairs fitted. samples: whether sample answers did.
    """

    file: Path
    evaluation: int = 0
    samples: bool = False

    @classmethod
    def read(cls, work: WorkDir, ranks: Ranks) -> "Shortage":
        """As earlier attempts left it, the same on every rank. Collective."""
        file = work.root / "shortage.json"
        found = ranks.run_on_rank_zero(lambda: _read(file))
        return cls(file, min(found["evaluation"], _NEVER), bool(found["samples"]))

    def budget(self, wanted: Budget) -> Budget:
        """The part of an evaluation's budget that is used. A single longer pair still goes through alone."""
        return Budget(max(1, wanted.tokens >> self.evaluation), wanted.pairs)

    def ran_out(self, what: str, *, ranks: int = 1) -> None:
        """Write down that an evaluation or samples ran out of memory, on whichever of the ranks it was. what: "evaluation" or "samples"."""
        if what == "samples":
            self.samples = True
        elif ranks == 1 or not self.evaluation:
            self.evaluation += 1
        else:
            self.evaluation = MOST_HALVINGS if self.evaluation < MOST_HALVINGS else _NEVER
        content = json.dumps({"evaluation": self.evaluation, "samples": self.samples})
        commit(self.file, content.encode())

    def within(
        self, wanted: Budget, evaluate: Callable[[Budget], T], *, world_size: int, telemetry: Telemetry
    ) -> tuple[T | None, bool]:
        """What an evaluation returns, and whether it fitted into memory, if need be with fewer tokens at a time. Collective.

        Raises TrainerError when one of several ranks runs out: see the module.
        """
        if world_size > 1 and self.evaluation > MOST_HALVINGS:
            telemetry.warning(
                "NoEvaluation",
                "evaluations are left out: an earlier attempt ran out of memory with single pairs. Take the longest pairs out of data.eval, or train on "
                "more GPUs; then delete shortage.json in the work folder",
                once=True,
            )
            return None, False
        while True:
            budget = self.budget(wanted)
            try:
                return evaluate(budget), True
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                said = first_line(error, 300)
            # The error is gone, and with it the tensors of the frames that it came through.
            free_cached()
            self.ran_out("evaluation", ranks=world_size)
            if world_size > 1:
                raise TrainerError(
                    ExitCode.INTERNAL_ERROR, f"An evaluation ran out of memory: {said} {self._next_attempt(wanted)}"
                )
            if budget.tokens == 1:
                telemetry.warning(
                    "NoEvaluation", f"an evaluation was left out, a single pair needs more memory: {said}"
                )
                return None, False
            telemetry.activity(
                f"an evaluation ran out of memory; again with {self.budget(wanted).tokens} tokens at a time"
            )

    def _next_attempt(self, wanted: Budget) -> str:
        """What the next attempt does, and what to set."""
        if self.evaluation > MOST_HALVINGS:
            return "Single pairs need more memory than there is: the next attempt evaluates nothing. Take the longest pairs out of data.eval."
        tokens = self.budget(wanted).tokens
        if tokens == 1:
            return "The next attempt evaluates single pairs. Set evaluation.microBatchSize to 1."
        return f"The next attempt evaluates with {tokens} tokens at a time. Set evaluation.microBatchTokens to it."


def _read(file: Path) -> dict[str, int | bool]:
    """The file's content; nothing ran out where it is missing or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {"evaluation": max(0, int(found["evaluation"])), "samples": bool(found["samples"])}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {"evaluation": 0, "samples": False}
