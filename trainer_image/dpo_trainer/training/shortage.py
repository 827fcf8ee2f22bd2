"""Running out of memory in an evaluation or in sample answers costs them, and not the run. Ranking pairs is tried again in the same way.

One rank tries an evaluation again with half of the tokens at a time. Among several ranks the others are in a collective then and wait for this one, so the
attempt ends; what ran out is on the volume, and the next attempt does it with less. Three attempts are lost at most: the first after it has half of the tokens,
the second single pairs, and the third no evaluation.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

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
Pass = Literal["evaluation", "ranking"]

# An evaluation is tried with 1/2, 1/4, 1/8 … of its tokens, at last with single pairs.
MOST_HALVINGS = 24
_PASSES: tuple[Pass, ...] = ("evaluation", "ranking")
_NEVER = MOST_HALVINGS + 1


@dataclass
class Shortage:
    """What ran out of memory in this run, over all attempts.

    halvings: how often the tokens of an evaluation, and of ranking the pairs, are halved; more than MOST_HALVINGS where not even single pairs fitted.
    samples: whether sample answers did.
    """

    file: Path
    halvings: dict[Pass, int]
    samples: bool = False

    @classmethod
    def read(cls, work: WorkDir, ranks: Ranks) -> "Shortage":
        """As earlier attempts left it, the same on every rank. Collective."""
        file = work.own / "shortage.json"  # other legs have other models or losses
        found = ranks.run_on_rank_zero(lambda: _read(file))
        return cls(file, {name: min(found[name], _NEVER) for name in _PASSES}, bool(found["samples"]))

    def budget(self, wanted: Budget, of: Pass = "evaluation") -> Budget:
        """The part of a pass's budget that is used. A single longer pair still goes through alone."""
        return Budget(max(1, wanted.tokens >> self.halvings[of]), wanted.pairs)

    def ran_out_in(self, of: Pass, *, ranks: int = 1) -> None:
        """Write down that a pass over pairs ran out of memory, on whichever of the ranks it was."""
        found = self.halvings[of]
        if ranks == 1 or not found:
            self.halvings[of] = found + 1
        else:
            self.halvings[of] = MOST_HALVINGS if found < MOST_HALVINGS else _NEVER
        self._write()

    def no_samples(self) -> None:
        """Write down that sample answers ran out of memory."""
        self.samples = True
        self._write()

    def _write(self) -> None:
        commit(self.file, json.dumps({**self.halvings, "samples": self.samples}).encode())

    def within(
        self,
        wanted: Budget,
        evaluate: Callable[[Budget], T],
        *,
        world_size: int,
        telemetry: Telemetry,
        of: Pass = "evaluation",
    ) -> tuple[T | None, bool]:
        """What a pass over pairs returns, and whether it fitted into memory, if need be with fewer tokens at a time. Collective.

        An evaluation that did not fit is reported in a warning; what a ranking without a result means is for the caller to say.
        Raises TrainerError when one of several ranks runs out: see the module.
        """
        if world_size > 1 and self.halvings[of] > MOST_HALVINGS:
            if of == "evaluation":
                telemetry.warning(
                    "NoEvaluation",
                    "evaluations are left out: an earlier attempt ran out of memory with single pairs. Take the longest pairs out of data.eval, or train on "
                    "more GPUs; then delete shortage.json in the work folder",
                    once=True,
                )
            return None, False
        while True:
            budget = self.budget(wanted, of)
            try:
                return evaluate(budget), True
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                said = first_line(error, 300)
            # The error is gone, and with it the tensors of the frames that it came through.
            free_cached()
            self.ran_out_in(of, ranks=world_size)
            name = "An evaluation" if of == "evaluation" else "Ranking the pairs"
            if world_size > 1:
                raise TrainerError(
                    ExitCode.INTERNAL_ERROR, f"{name} ran out of memory: {said} {self._next_attempt(wanted, of)}"
                )
            if budget.tokens == 1:
                if of == "evaluation":
                    telemetry.warning(
                        "NoEvaluation", f"an evaluation was left out, a single pair needs more memory: {said}"
                    )
                return None, False
            telemetry.activity(
                f"{name} ran out of memory; again with {self.budget(wanted, of).tokens} tokens at a time"
            )

    def _next_attempt(self, wanted: Budget, of: Pass) -> str:
        """What the next attempt does, and what to set."""
        if self.halvings[of] > MOST_HALVINGS:
            ending = (
                "the next attempt evaluates nothing. Take the longest pairs out of data.eval."
                if of == "evaluation"
                else "lower data.maxLength, or leave training.selection out."
            )
            return f"Single pairs need more memory than there is: {ending}"
        tokens, verb = self.budget(wanted, of).tokens, "evaluates" if of == "evaluation" else "ranks"
        if tokens == 1:
            return f"The next attempt {verb} single pairs. Set evaluation.microBatchSize to 1."
        return f"The next attempt {verb} with {tokens} tokens at a time. Set evaluation.microBatchTokens to it."


def _read(file: Path) -> dict[str, int]:
    """The file's content; nothing ran out where it is missing or damaged. Earlier versions did not rank pairs."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        counts = {"evaluation": int(found["evaluation"]), "ranking": int(found.get("ranking", 0))}
        return {name: max(0, count) for name, count in counts.items()} | {"samples": int(bool(found["samples"]))}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return {"evaluation": 0, "ranking": 0, "samples": 0}
