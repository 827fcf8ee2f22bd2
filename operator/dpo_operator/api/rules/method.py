"""Rules about the losses: a setting that a loss would ignore is refused, for the first loss and for each that is added."""

from collections.abc import Callable

from dpo_operator.api.method import REFERENCE_FREE, Loss, MethodName
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


def _only_for(setting: str, method: MethodName, read: Callable[[Loss], object]) -> tuple[Rule, Rule]:
    """An optional setting that one loss has."""
    return _of_each_loss(
        setting,
        f"(!has(LOSS.{setting}) || LOSS.name == '{method.value}')",
        lambda loss: read(loss) is None or loss.name is method,
        f"must be left out unless the loss's name is {method.value}",
    )


METHOD_RULES: tuple[Rule, ...] = (
    Rule(
        "model.reference",
        f"!has(self.model.reference) || !(self.method.name in {names_cel(FREE)}) || "
        f"self.method.plus.exists(loss, !(loss.name in {names_cel(FREE)}))",
        lambda s: s.model.reference is None or s.method.needs_reference,
        "must be left out when no loss compares with a reference, as with orpo and simpo",
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
    *_only_for("lengthDesensitization", MethodName.LD_DPO, lambda loss: loss.length_desensitization),
    *_only_for("reduction", MethodName.IPO, lambda loss: loss.reduction),
    *_only_for("marginRatio", MethodName.SIMPO, lambda loss: loss.margin_ratio),
    *_only_for("margin", MethodName.SIMPO, lambda loss: loss.margin),
    *_of_each_loss(
        "margin",
        "(!has(LOSS.margin) || !has(LOSS.marginRatio))",
        lambda loss: loss.margin is None or loss.margin_ratio is None,
        "excludes marginRatio: both say what the target margin is",
    ),
    *_only_for("desirableWeight", MethodName.KTO, lambda loss: loss.desirable_weight),
    *_only_for("undesirableWeight", MethodName.KTO, lambda loss: loss.undesirable_weight),
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
