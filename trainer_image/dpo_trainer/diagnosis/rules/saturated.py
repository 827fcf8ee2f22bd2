"""Saturated: every pair is won and the gradient is gone, with steps still to come."""

from statistics import median

from dpo_operator.api.diagnosis import Code, Finding
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, mean, number
from dpo_trainer.diagnosis.saying import finding, instead, percent, round_, short

_FEWEST = 4


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """State that the rest of the run changes nothing. The result may be fine, so it is an Info."""
    train, tenth = record.train, max(_FEWEST, len(record.train) // max(1, round(10 * record.done)))
    left = 1 - record.done
    if len(train) < 2 * tenth or left <= limits["saturatedLeft"]:
        return None
    early = [g for line in train[:tenth] if (g := number(line, "grad_norm")) is not None]
    late = [g for line in train[-tenth:] if (g := number(line, "grad_norm")) is not None]
    accuracy = mean(train[-tenth:], "rewards/accuracies")
    if not early or not late or accuracy is None or accuracy.value < limits["saturatedAccuracy"]:
        return None
    limit = limits["saturatedGradient"] * median(early)
    if max(late) >= limit:
        return None
    beta, epochs = record.spec.method.strength, record.spec.training.epochs
    suggestion = (
        instead("method.beta", beta / 10, beta)
        if record.spec.method.needs_reference and beta > 0.5
        else f"try training.epochs {short(round_(max(0.1, epochs * record.done), 1))} instead of {short(epochs)}, or method.name ipo, which does not saturate"
    )
    return finding(
        Code.SATURATED, "Info", record.step,
        f"{percent(accuracy.value)} of the training pairs are won and the gradient is {percent(max(late) / median(early))} of what it was: the "
        f"{percent(left)} of the steps that are left change next to nothing.",
        [("rewards/accuracies", accuracy.value, limits["saturatedAccuracy"]), ("grad_norm", max(late), limit)],
        "method.beta" if beta > 0.5 else "training.epochs", f"{suggestion[0].upper()}{suggestion[1:]}.",
    )  # fmt: skip
