"""TemplateOrBoundary: the first tokens of the answers surprise the model far more than its own text does."""

from dpo_operator.api.diagnosis import Code, Finding
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, number
from dpo_trainer.diagnosis.saying import finding


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """State that the chat template, or the place where prompt and answer meet, is not the model's."""
    start = record.start
    first = [number(start, f"surprise/first4_{side}") for side in ("chosen", "rejected")]
    rest = [number(start, f"surprise/rest_{side}") for side in ("chosen", "rejected")]
    pairs = number(start, "surprise/pairs") or 0
    limit, out = limits["templateSurprise"], limits["templateStandsOut"]
    if pairs < limits["surprisePairs"] or any(value is None or value < limit for value in first):
        return None
    if all(a is not None and b is not None and a < out * b for a, b in zip(first, rest, strict=True)):
        return None
    own = record.spec.model.chat_template is not None
    return finding(
        Code.TEMPLATE_OR_BOUNDARY, "Unhealthy", 0,
        f"The first tokens of the answers surprise the model {min(v for v in first if v is not None):.2g} times as much as its own text, the "
        f"rest {min((v for v in rest if v is not None), default=0.0):.2g} times: the chat template, or where the prompt ends, is not as it was tuned.",
        [(f"surprise/first4_{side}", value, limit) for side, value in zip(("chosen", "rejected"), first, strict=True)]
        + [(f"surprise/rest_{side}", value, None) for side, value in zip(("chosen", "rejected"), rest, strict=True)],
        "model.chatTemplate" if own else "data.train",
        "Leave model.chatTemplate out, so that the tokenizer's own template is used; `dpo preview` shows the first pairs as tokens."
        if own
        else "Compare `dpo preview` with what the model was tuned on: its template (model.chatTemplate), and spaces between prompt and answer.",
    )  # fmt: skip
