"""Rules about training.selection: pairs to rank, a ranking that comes about, and no setting that would mean nothing."""

from collections.abc import Callable

from dpo_operator.api.method import MethodName
from dpo_operator.api.rules.rule import Rule
from dpo_operator.api.trainingparts.selection import Selection
from dpo_operator.api.types import DPOJobSpec

_SELF = "self.training.selection"


def _rule(field: str, cel: str, check: Callable[[DPOJobSpec, Selection], bool], message: str) -> Rule:
    """A rule for jobs with a selection alone."""
    return Rule(
        f"training.selection{field}",
        f"!has({_SELF}) || ({cel})",
        lambda s: s.training.selection is None or check(s, s.training.selection),
        message,
    )


SELECTION_RULES: tuple[Rule, ...] = (
    _rule(
        "",
        "self.method.name != 'kto'",
        lambda s, _: s.method.name is not MethodName.KTO,
        "must be left out with the method kto, whose examples may have one answer: there is no gap to rank them by",
    ),
    _rule(
        ".by",
        f"{_SELF}.by != 'scoreGap' || !has(self.iterative)",
        lambda s, selection: selection.has_pass or s.iterative is None,
        "scoreGap reads the scores of data.train, and rounds make their own pairs; use iterative.pairs.minGap, or rewardGap",
    ),
    _rule(
        ".warmup",
        f"{_SELF}.by != 'scoreGap' || !has({_SELF}.warmup)",
        lambda _, selection: selection.has_pass or selection.warmup is None,
        "must be left out with scoreGap: the data's scores are known before the first step",
    ),
    _rule(
        ".keep.quantiles",
        f"{_SELF}.keep.quantiles[0] < {_SELF}.keep.quantiles[1]",
        lambda _, selection: selection.keep.quantiles[0] < selection.keep.quantiles[1],
        "are from and to: the first must be below the second",
    ),
    _rule(
        ".refresh",
        f"{_SELF}.refresh != 'epoch' || ({_SELF}.by != 'scoreGap' && (self.training.epochs > 1.0 || has(self.training.maxSteps)))",
        lambda s, selection: (
            selection.refresh != "epoch"
            or (selection.has_pass and (s.training.epochs > 1 or s.training.max_steps is not None))
        ),
        "epoch needs more than one epoch, and a policy that ranks: scores of the data don't change, so leave it out with scoreGap",
    ),
)
