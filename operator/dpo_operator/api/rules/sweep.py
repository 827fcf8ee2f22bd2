"""Rules about sweeps: a grid of 2 to 32 different legs, a measure that they have in common, and no value that is given twice."""

from collections.abc import Callable, Sequence

from dpo_operator.api.method import MethodName
from dpo_operator.api.model import Adapter, AdapterType
from dpo_operator.api.rules.data import EVALUATES, evaluates
from dpo_operator.api.rules.rule import Rule
from dpo_operator.api.sweep.grid import MAX_LEGS, Sweep, Value
from dpo_operator.api.types import DPOJobSpec

_LISTS = ("method", "adapterRank", "beta", "learningRate", "seed")
_LEGS = " * ".join(f"(self.sweep.{name}.size() > 0 ? self.sweep.{name}.size() : 1)" for name in _LISTS)
_RANK = Adapter().rank


def _rule(
    field: str,
    cel: str,
    check: Callable[[DPOJobSpec, Sweep], bool],
    message: str,
    found: Callable[[Sweep], str] = lambda _: "",
) -> Rule:
    """A rule for jobs with a sweep alone."""
    return Rule(
        f"sweep.{field}" if field else "sweep",
        f"!has(self.sweep) || ({cel})",
        lambda s: s.sweep is None or check(s, s.sweep),
        message,
        lambda s: "" if s.sweep is None else found(s.sweep),
    )


def _twice(values: Sequence[Value]) -> list[str]:
    """The values that a list has more than once, as text."""
    return [str(getattr(value, "value", value)) for value in dict.fromkeys(values) if list(values).count(value) > 1]


def _different(name: str) -> Rule:
    listed = f"self.sweep.{name}"
    return _rule(
        name,
        f"{listed}.all(v, {listed}.exists_one(w, w == v))",
        lambda _, sweep: not _twice(sweep.lists.get(name, ())),
        "has a value more than once, and equal legs are one leg; leave the copies out",
        lambda sweep: f"found {', '.join(_twice(sweep.lists.get(name, ())))} more than once",
    )


SWEEP_RULES: tuple[Rule, ...] = (
    _rule(
        "",
        "!has(self.iterative)",
        lambda s, _: s.iterative is None,
        "can't be used with iterative; sweep first, then make a job with rounds and the values of the best leg",
    ),
    _rule(
        "",
        "!has(self.resumeFrom)",
        lambda s, _: s.resume_from is None,
        "can't be used with resumeFrom, whose checkpoint has the settings of one leg at most; leave resumeFrom out",
    ),
    _rule(
        "",
        f"{_LEGS} >= 2 && {_LEGS} <= {MAX_LEGS}",
        lambda _, sweep: 2 <= sweep.legs <= MAX_LEGS,
        f"must have 2 to {MAX_LEGS} legs, the product of the sizes of its lists; give a list some values, or divide the grid between several jobs",
        lambda sweep: f"found {sweep.legs}",
    ),
    _rule(
        "",
        EVALUATES,
        lambda s, _: evaluates(s),
        "needs data.eval or data.evalFraction above 0: without an evaluation no leg is the best",
    ),
    *(_different(name) for name in _LISTS),
    _rule(
        "method",
        "self.sweep.method.size() == 0 || self.method.name == 'dpo'",
        lambda s, sweep: not sweep.method or s.method.name is MethodName.DPO,
        "and method.name are both given; leave method.name out, and put its value into the list",
    ),
    _rule(
        "method",
        "!('reward-model' in self.sweep.method)",
        lambda _, sweep: MethodName.REWARD_MODEL not in sweep.method,
        "must not have reward-model, which trains a classifier and no policy; sweep other values with method.name reward-model",
    ),
    _rule(
        "adapterRank",
        "self.sweep.adapterRank.size() == 0 || (self.adapter.type != 'none' && (!has(self.model.adapter) || self.model.adapter.train == 'new'))",
        lambda s, sweep: (
            not sweep.adapter_rank
            or (s.adapter.type is not AdapterType.NONE and (s.model.adapter is None or s.model.adapter.train == "new"))
        ),
        "needs adapter.type lora or qlora, and a new adapter: one that is trained further (model.adapter.train same) has its own rank",
    ),
    _rule(
        "adapterRank",
        f"self.sweep.adapterRank.size() == 0 || self.adapter.rank == {_RANK}",
        lambda s, sweep: not sweep.adapter_rank or s.adapter.rank == _RANK,
        "and adapter.rank are both given; leave adapter.rank out, and put its value into the list",
    ),
    _rule(
        "beta",
        "self.sweep.beta.size() == 0 || !has(self.method.beta)",
        lambda s, sweep: not sweep.beta or s.method.beta is None,
        "and method.beta are both given; leave method.beta out, and put its value into the list",
    ),
    _rule(
        "learningRate",
        "self.sweep.learningRate.size() == 0 || !has(self.training.learningRate)",
        lambda s, sweep: not sweep.learning_rate or s.training.learning_rate is None,
        "and training.learningRate are both given; leave training.learningRate out, and put its value into the list",
    ),
    _rule(
        "select",
        "self.sweep.select != 'eval_loss' || (self.sweep.beta.size() <= 1 && self.sweep.method.size() <= 1)",
        lambda _, sweep: sweep.select != "eval_loss" or (len(sweep.beta) <= 1 and len(sweep.method) <= 1),
        "must be eval_reward_accuracy when beta or method has several values, whose losses can't be compared",
        lambda sweep: (
            f"found eval_loss with {max(1, len(sweep.beta))} of beta and {max(1, len(sweep.method))} of method"
        ),
    ),
    _rule(
        "stopUnhealthy",
        "!self.sweep.stopUnhealthy || self.diagnosis.enabled",
        lambda s, sweep: not sweep.stop_unhealthy or s.diagnosis.enabled,
        "must be false with diagnosis.enabled false, which looks for no findings",
    ),
)
