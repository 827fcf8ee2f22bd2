"""Which phase follows which: one function for the operator and `dpo run`.

A job without rounds: prepare, train, export. With `spec.sweep`: prepare; train for each leg; export. With `spec.iterative`: prepare; generate, judge, train and export for each round; with
iterative.evaluateLast a generate and a judge that compare the last policy; then the export of the job, whose round is 0.
"""

from dataclasses import dataclass

from dpo_operator.api.names import Phase, leg_folder, round_folder
from dpo_operator.api.reports import RoundReport, RoundsEnd
from dpo_operator.api.statusparts.rounds import RoundStatus
from dpo_operator.api.types import DPOJobSpec


@dataclass(frozen=True)
class Step:
    """A phase of a round, or of a leg of a sweep. round, leg: from 1; 0 for phases of the whole job, and in jobs without rounds or legs."""

    phase: Phase
    round: int = 0
    leg: int = 0

    @property
    def folder(self) -> str:
        """Of the round or leg in the job's folder; empty for phases of the whole job."""
        return round_folder(self.round) or leg_folder(self.leg)

    @property
    def whose(self) -> str:
        """Round or leg for people, such as "leg 2"; empty for phases of the whole job."""
        return f"round {self.round}" if self.round else f"leg {self.leg}" if self.leg else ""


FIRST = Step("prepare")
LAST = Step("export")


def is_asked(report: RoundReport | RoundStatus) -> bool:
    """Whether a judge found something to train on: answers, and pairs where the budget was spent, perhaps before any of them was judged."""
    return report.pairs > 0 if report.ended == "BudgetSpent" else report.prompts > 0


def following(spec: DPOJobSpec, done: Step, end: RoundsEnd = "", *, asked: bool = True) -> Step | None:
    """What follows a step that succeeded; None at the end of the job.

    end: why no further round is trained, as the report of this round says. With BudgetSpent this round is trained still, on what was judged.
    asked: whether a judge found something to train on, see is_asked. Without it a round that is to be trained generates first: it began as the
    comparison after the last round, and rounds was raised meanwhile.
    """
    if done == LAST:
        return None
    if spec.sweep is not None:
        return Step("train", leg=done.leg + 1) if done.leg < spec.sweep.legs else LAST
    if spec.iterative is None:
        return Step("train") if done == FIRST else LAST
    rounds = spec.iterative.rounds
    match done.phase:
        case "prepare":
            return Step("generate", 1)
        case "generate":
            return Step("judge", done.round)
        case "judge":
            # The judge after the last round only compares.
            ends = end not in ("", "BudgetSpent") or done.round > rounds or (bool(end) and not asked)
            return LAST if ends else Step("train" if asked else "generate", done.round)
        case "train":
            return Step("export", done.round)
        case "export":
            compares = spec.iterative.evaluate_last and spec.iterative.win_rate.prompts > 0
            return Step("generate", done.round + 1) if not end and (done.round < rounds or compares) else LAST
