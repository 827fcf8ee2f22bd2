"""Running out of memory in an evaluation or in sample answers costs them, and not the run.

One rank tries an evaluation again with half of the tokens at a time. Among several ranks the others are in a collective then and wait for this one, so the
attempt ends; what ran out is on the volume, and the next attempt does it with less.
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


@dataclass
class Shortage:
    """What ran out of memory in this run, over all attempts.

    evaluation: how often an evaluation did; each time halves its tokens. samples: whether sample answers did.
    """

    file: Path
    evaluation: int = 0
    samples: bool = False

    @classmethod
    def read(cls, work: WorkDir, ranks: Ranks) -> "Shortage":
        """As earlier attempts left it, the same on every rank. Collective."""
        file = work.root / "shortage.json"
        found = ranks.run_on_rank_zero(lambda: _read(file))
        return cls(file, min(found["evaluation"], MOST_HALVINGS), bool(found["samples"]))

    def budget(self, wanted: Budget) -> Budget:
        """The part of an evaluation's budget that is used. A single longer pair still goes through alone."""
        return Budget(max(1, wanted.tokens >> self.evaluation), wanted.pairs)

    def ran_out(self, what: str) -> None:
        """Write down that an evaluation or samples ran out of memory, on whichever rank it was. what: "evaluation" or "samples"."""
        if what == "samples":
            self.samples = True
        else:
            self.evaluation += 1
        content = json.dumps({"evaluation": self.evaluation, "samples": self.samples})
        commit(self.file, content.encode())

    def within(
        self, wanted: Budget, evaluate: Callable[[Budget], T], *, world_size: int, telemetry: Telemetry
    ) -> tuple[T | None, bool]:
        """What an evaluation returns, and whether it fitted into memory, if need be with fewer tokens at a time. Collective.

        Raises TrainerError when one of several ranks runs out: see the module.
        """
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
            self.ran_out("evaluation")
            if world_size > 1:
                raise TrainerError(
                    ExitCode.INTERNAL_ERROR,
                    f"An evaluation ran out of memory: {said} The next attempt evaluates with {self.budget(wanted).tokens} tokens at a time. Set "
                    "evaluation.microBatchTokens to it.",
                )
            if budget.tokens == 1:
                telemetry.warning(
                    "NoEvaluation", f"an evaluation was left out, a single pair needs more memory: {said}"
                )
                return None, False
            telemetry.activity(
                f"an evaluation ran out of memory; again with {self.budget(wanted).tokens} tokens at a time"
            )


def _read(file: Path) -> dict[str, int | bool]:
    """The file's content; nothing ran out where it is missing or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {"evaluation": max(0, int(found["evaluation"])), "samples": bool(found["samples"])}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {"evaluation": 0, "samples": False}
