"""Rules about the losses: a setting that a loss would ignore is refused, for the first loss and for each that is added."""

from collections.abc import Callable

from dpo_operator.api.method import REFERENCE_FREE, Loss, MethodName
from dpo_operator.api.model import AdapterType
from dpo_operator.api.rules.rule import Rule

SMOOTHED = (MethodName.DPO, MethodName.LD_DPO, MethodName.LN_DPO, MethodName.SIMPO)
FREE = tuple(sorted(REFERENCE_FREE))
ROBUST = (MethodName.DPO, MethodName.LD_DPO, MethodName.LN_DPO)


def names_cel(methods: tuple[MethodName, ...]) -> str:
    """A CEL list."""
    return "[" + ", ".join(f"'{method.value}'" for method in methods) + "]"


def _of_each_loss(setting: str, cel: str, check: Callable[[Loss], bool], message: str) -> tuple[Rule, Rule]:
    """The same rule for method and for the losses in method.plus. cel: over the loss, written LOSS."""
    return (
        Rule(f"method.{setting}", cel.replace("LOSS", "self.method"), lambda s: check(s.method), message),
        Rule(
            "method.plus",
            f"self.method.plus.all(loss, {cel.replace('LOSS', 'loss')})",
            lambda s: all(check(loss) for loss in s.method.plus),
            f"{setting} {message}",
        ),
    )


def _only_for(setting: str, read: Callable[[Loss], object], *methods: MethodName) -> tuple[Rule, Rule]:
    """An optional setting that some losses have."""
    return _of_each_loss(
        setting,
        f"(!has(LOSS.{setting}) || LOSS.name in {names_cel(methods)})",
        lambda loss: read(loss) is None or loss.name in methods,
        f"must be left out unless the loss's name is {' or '.join(method.value for method in methods)}",
    )


METHOD_RULES: tuple[Rule, ...] = (
    Rule(
        "model.reference",
        f"!has(self.model.reference) || !(self.method.name in {names_cel(FREE)}) || "
        f"self.method.plus.exists(loss, !(loss.name in {names_cel(FREE)}))",
        lambda s: s.model.reference is None or s.method.needs_reference,
        "must be left out when no loss compares with a reference, as with orpo, simpo and reward-model",
    ),
    *_of_each_loss(
        "labelSmoothing",
        f"(LOSS.labelSmoothing == 0.0 || LOSS.name in {names_cel(SMOOTHED)})",
        lambda loss: loss.label_smoothing == 0 or loss.name in SMOOTHED,
        "must be 0 unless the loss's name is dpo, ld-dpo, ln-dpo or simpo",
    ),
    *_of_each_loss(
        "robust",
        f"(!LOSS.robust || (LOSS.name in {names_cel(ROBUST)} && LOSS.labelSmoothing > 0.0))",
        lambda loss: not loss.robust or (loss.name in ROBUST and loss.label_smoothing > 0),
        "needs the name dpo, ld-dpo or ln-dpo, and labelSmoothing above 0",
    ),
    *_only_for("lengthDesensitization", lambda loss: loss.length_desensitization, MethodName.LD_DPO),
    *_only_for("reduction", lambda loss: loss.reduction, MethodName.IPO),
    *_only_for("marginRatio", lambda loss: loss.margin_ratio, MethodName.SIMPO),
    *_only_for("margin", lambda loss: loss.margin, MethodName.SIMPO, MethodName.REWARD_MODEL),
    *_only_for("marginPerScore", lambda loss: loss.margin_per_score, MethodName.REWARD_MODEL),
    *_of_each_loss(
        "margin",
        "(!has(LOSS.margin) || !has(LOSS.marginRatio))",
        lambda loss: loss.margin is None or loss.margin_ratio is None,
        "excludes marginRatio: both say what the target margin is",
    ),
    *_only_for("desirableWeight", lambda loss: loss.desirable_weight, MethodName.KTO),
    *_only_for("undesirableWeight", lambda loss: loss.undesirable_weight, MethodName.KTO),
    Rule(
        "method.desirableWeight",
        "!has(self.method.desirableWeight) || !has(self.method.undesirableWeight) || "
        "self.method.desirableWeight > 0.0 || self.method.undesirableWeight > 0.0",
        lambda s: s.method.desirable_weight != 0 or s.method.undesirable_weight != 0,
        "and undesirableWeight must not both be 0: nothing would be learnt",
    ),
    Rule(
        "method.plus",
        "self.method.plus.all(loss, loss.name != 'kto') && (self.method.name != 'kto' || self.method.plus.size() == 0)",
        lambda s: (
            all(loss.name is not MethodName.KTO for loss in s.method.plus)
            and (s.method.name is not MethodName.KTO or not s.method.plus)
        ),
        "kto can't be combined: it scores single answers, the other losses pairs",
    ),
    Rule(
        "method.plus",
        "self.method.plus.all(loss, loss.name != 'reward-model') && (self.method.name != 'reward-model' || self.method.plus.size() == 0)",
        lambda s: (
            all(loss.name is not MethodName.REWARD_MODEL for loss in s.method.plus)
            and not (s.method.trains_reward_model and s.method.plus)
        ),
        "reward-model can't be combined: it trains a classifier, the other losses a policy",
    ),
    Rule(
        "method.beta",
        "!has(self.method.beta) || self.method.name != 'reward-model'",
        lambda s: s.method.beta is None or not s.method.trains_reward_model,
        "must be left out with the name reward-model, whose rewards have the scale that the data give them",
    ),
    Rule(
        "method.nllWeight",
        "!has(self.method.nllWeight) || self.method.nllWeight == 0.0 || self.method.name != 'reward-model'",
        lambda s: not s.method.nll_weight or not s.method.trains_reward_model,
        "must be 0 or left out with the name reward-model, which predicts no token",
    ),
    Rule(
        "model.adapter",
        "!has(self.model.adapter) || self.method.name != 'reward-model'",
        lambda s: s.model.adapter is None or not s.method.trains_reward_model,
        "must be left out with the method reward-model: an adapter of a language model has no part that scores; merge it into the model first",
    ),
    Rule(
        "adapter.type",
        "self.adapter.type != 'qlora' || self.method.name != 'reward-model'",
        lambda s: s.adapter.type is not AdapterType.QLORA or not s.method.trains_reward_model,
        "must not be qlora with the method reward-model; use lora or none",
    ),
    Rule(
        "method.nllWeight",
        "!has(self.method.nllWeight) || self.method.nllWeight == 0.0 || self.method.name != 'kto'",
        lambda s: not s.method.nll_weight or s.method.name is not MethodName.KTO,
        "must be 0 or left out with the name kto, whose examples may have no chosen answer",
    ),
    Rule(
        "method.nllOver",
        "self.method.nllOver == 'answer' || "
        "(has(self.method.nllWeight) ? self.method.nllWeight > 0.0 : self.method.name == 'orpo')",
        lambda s: s.method.nll_over == "answer" or s.method.likelihood_weight > 0,
        "all needs a likelihood: nllWeight above 0, or the name orpo without nllWeight",
    ),
)
