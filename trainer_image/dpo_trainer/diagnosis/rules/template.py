"""TemplateOrBoundary: the first tokens of the answers surprise the model far more than its own text does."""

from dpo_operator.api.diagnosis import Code, Finding, Severity
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, number
from dpo_trainer.diagnosis.saying import finding


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """State that the chat template, or the place where prompt and answer meet, is not the model's.

    Answers of other writers surprise a chat model as much, because it is very sure of its own words. So surprise alone is a Warning at most, and
    an Info where the rest of the answers surprises, too.
    """
    start = record.start
    first = [number(start, f"surprise/first4_{side}") for side in ("chosen", "rejected")]
    rest = [number(start, f"surprise/rest_{side}") for side in ("chosen", "rejected")]
    pairs = number(start, "surprise/pairs") or 0
    limit, out = limits["templateSurprise"], limits["templateStandsOut"]
    if pairs < limits["surprisePairs"] or any(value is None or value < limit for value in first):
        return None
    if all(a is not None and b is not None and a < out * b for a, b in zip(first, rest, strict=True)):
        return None
    severity: Severity = "Warning"
    if _is_lost(record, limits):
        severity = "Unhealthy"
    elif all(value is not None and value >= limits["mismatchSurprise"] for value in rest):
        severity = "Info"
    own = record.spec.model.chat_template is not None
    return finding(
        Code.TEMPLATE_OR_BOUNDARY, severity, 0,
        f"The first tokens of the answers surprise the model {min(v for v in first if v is not None):.2g} times as much as its own text, the "
        f"rest {min((v for v in rest if v is not None), default=0.0):.2g} times: the chat template, or where the prompt ends, is not as it was tuned.",
        [(f"surprise/first4_{side}", value, limit) for side, value in zip(("chosen", "rejected"), first, strict=True)]
        + [(f"surprise/rest_{side}", value, None) for side, value in zip(("chosen", "rejected"), rest, strict=True)]
        + [("token_accuracy/chosen", number(start, "token_accuracy/chosen"), limits["templateAccuracy"]),
           ("nll_per_token/chosen", number(start, "nll_per_token/chosen"), limits["templateNll"]),
           ("samples/greedy/repeated_4grams", number(start, "samples/greedy/repeated_4grams"), limits["gibberishRepeated"])],
        "model.chatTemplate" if own else "data.train",
        "Leave model.chatTemplate out, so that the tokenizer's own template is used; `dpo preview` shows the first pairs as tokens."
        if own
        else "Compare `dpo preview` with what the model was tuned on: its template (model.chatTemplate), and spaces between prompt and answer.",
    )  # fmt: skip


def _is_lost(record: RunRecord, limits: Limits) -> bool:
    """Whether the model does not find its way under this template: it guesses few tokens of the answers, which are very unlikely to it, or its own go in circles."""
    start = record.start
    accuracies = [number(start, f"token_accuracy/{side}") for side in ("chosen", "rejected")]
    unlikely = [number(start, f"nll_per_token/{side}") for side in ("chosen", "rejected")]
    repeated = number(start, "samples/greedy/repeated_4grams")
    circles = (
        repeated is not None
        and repeated >= limits["gibberishRepeated"]
        and (number(start, "samples/prompts") or 0) >= limits["samplePrompts"]
    )
    few = all(share is not None and share < limits["templateAccuracy"] for share in accuracies)
    return circles or (few and all(nll is not None and nll >= limits["templateNll"] for nll in unlikely))
